"""Which family a backbone belongs to: the place where a new one is added."""

from __future__ import annotations

from fairchem.core.models.allscaip.AllScAIP import AllScAIPBackbone
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone
from fairchem.core.models.uma.escn_md import eSCNMDBackbone
from torch import nn

from fairchem_gdeq.fairchem2.graphs import EdgeList, Graphs
from fairchem_gdeq.fairchem2.neighbours import NeighbourLists
from fairchem_gdeq.frozen.refusals import unknown_neighbours


def graphs_of(backbone: nn.Module) -> Graphs | None:
    """How this backbone's neighbours are frozen; None if it has none.

    Raises:
        ValueError: a backbone about whose neighbours nothing is known.
    """
    if isinstance(backbone, EScAIPBackbone | AllScAIPBackbone):
        return NeighbourLists(backbone)
    if isinstance(backbone, eSCNMDBackbone):
        return EdgeList(backbone)
    if getattr(backbone, "neighbour_free", False):
        return None
    raise unknown_neighbours(
        backbone,
        "A backbone without neighbours says so with the attribute neighbour_free = True.",
    )
