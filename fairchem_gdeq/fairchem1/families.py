"""Which family a fairchem 1 model belongs to: the place where a new one is added."""

from __future__ import annotations

from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.equiformer_v2_deprecated import EquiformerV2 as OldEqV2
from fairchem.core.models.escn.escn import eSCN
from fairchem.core.models.esen.esen import eSEN_Backbone
from fairchem.core.models.esen.esen_dens import eSEN_DeNS_Backbone
from fairchem.core.models.gemnet.gemnet import GemNetT
from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC as LibraryGemNetOC
from fairchem.core.models.painn.painn import PaiNN
from fairchem.core.models.schnet import SchNet
from fairchem.core.models.scn.scn import SphericalChannelNetwork
from torch import nn

from fairchem_gdeq.fairchem1.equiformer_v2 import EquiformerV2
from fairchem_gdeq.fairchem1.escn import ESCN
from fairchem_gdeq.fairchem1.esen import ESEN
from fairchem_gdeq.fairchem1.gemnet_oc import GemNetOC
from fairchem_gdeq.fairchem1.graphs import EdgeList
from fairchem_gdeq.fairchem1.scn import SCN
from fairchem_gdeq.frozen.families import family_of
from fairchem_gdeq.frozen.refusals import unknown_neighbours

FAMILIES: dict[type[nn.Module], type[EdgeList]] = {
    EquiformerV2Backbone: EquiformerV2,
    OldEqV2: EquiformerV2,
    eSCN: ESCN,
    eSEN_Backbone: ESEN,
    eSEN_DeNS_Backbone: ESEN,
    SphericalChannelNetwork: SCN,
    LibraryGemNetOC: GemNetOC,
    GemNetT: EdgeList,
    PaiNN: EdgeList,
    SchNet: EdgeList,
}


def register_family(backbone: type[nn.Module], family: type[EdgeList]) -> None:
    """Say how the neighbours of a class of backbones, and of its subclasses, are frozen."""
    FAMILIES[backbone] = family


def graphs_of(backbone: nn.Module) -> EdgeList:
    """How this backbone's neighbours are frozen.

    Raises:
        ValueError: a backbone about whose neighbours nothing is known.
    """
    graphs = family_of(backbone, FAMILIES)
    if graphs is not None:
        return graphs
    known = ", ".join(library.__name__ for library in FAMILIES)
    raise unknown_neighbours(backbone, f"Supported are {known}.")
