"""Which family a backbone belongs to: the place where a new one is added."""

from __future__ import annotations

from collections.abc import Callable

from fairchem.core.models.allscaip.AllScAIP import AllScAIPBackbone
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone
from fairchem.core.models.uma.escn_md import eSCNMDBackbone
from torch import nn

from fairchem_gdeq.fairchem2.graphs import EdgeList, Edges, Graphs
from fairchem_gdeq.fairchem2.neighbours import NeighbourLists
from fairchem_gdeq.frozen.families import family_of
from fairchem_gdeq.frozen.refusals import unknown_neighbours
from fairchem_gdeq.models.relaxnet import RelaxNetBackbone

Family = Callable[[nn.Module], Graphs]
FAMILIES: dict[type[nn.Module], Family] = {
    EScAIPBackbone: NeighbourLists,
    AllScAIPBackbone: NeighbourLists,
    eSCNMDBackbone: EdgeList,
    RelaxNetBackbone: Edges,
}


def register_family(backbone: type[nn.Module], family: Family) -> None:
    """Say how the neighbours of a class of backbones, and of its subclasses, are frozen.

    Args:
        backbone: the class.
        family: makes a ``Graphs`` of a backbone; ``Edges`` for those that take their edges from the
            batch, ``EdgeList`` where they also roll the edges' frames as eSCN-MD does.
    """
    FAMILIES[backbone] = family


def graphs_of(backbone: nn.Module) -> Graphs | None:
    """How this backbone's neighbours are frozen; None if it has none.

    Raises:
        ValueError: a backbone about whose neighbours nothing is known.
    """
    graphs = family_of(backbone, FAMILIES)
    if graphs is not None:
        return graphs
    if getattr(backbone, "neighbour_free", False):
        return None
    raise unknown_neighbours(
        backbone,
        "A backbone without neighbours says so with the attribute neighbour_free = True; how those of "
        "another class are frozen is said by fairchem_gdeq.fairchem2.families.register_family.",
    )
