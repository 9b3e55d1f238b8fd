"""Edges of a frozen graph: what the edge lists of both fairchem lines do with them.

An edge is a column of ``edge_index`` [2, e], source and target, and a row of offsets [e, 3], whole
lattice vectors: x_source - x_target + offset @ cell is its vector, at positions as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import to_device, where_of

SKIN_SEARCH = 0.5  # Angstrom beyond the cutoff where ``skin`` looks for pairs about to enter


class Neighbours(Protocol):
    """How one family of backbones chooses neighbours, as far as both fairchem lines say it alike."""

    rotation_equivariant: bool  # whether forces turn with a structure that is not periodic

    def periodic(self, batch: Any) -> Tensor:
        """Lattice vectors [s, 3], bool, along which the model sees a periodic structure."""
        ...

    def skin(self, batch: Any) -> Tensor:
        """Per structure [s], how far (Angstrom) the nearest pair is from entering or leaving."""
        ...


def edge_rows(edge_index: Tensor, offsets: Tensor, purpose: Tensor | None = None) -> Tensor:
    """Rows [e, 5 + k] of whole numbers that tell edges apart, with the ``purpose`` [e, k] of each."""
    columns = [edge_index.T, offsets.round().long()]
    return torch.cat(columns if purpose is None else [*columns, purpose.long()], dim=1)


def edges_changed(before: Tensor, after: Tensor, batch: Tensor, count: int) -> Tensor:
    """Edges [s] that one graph of a batch has and the other lacks, or that serve another purpose.

    Args:
        before, after: ``edge_rows`` of the two graphs.
        batch: [n], the structure of each atom, of ``count``.
    """
    found, number = torch.unique(torch.cat([before, after]), dim=0, return_counts=True)
    lonely = torch.unique(found[number == 1][:, :5], dim=0)
    return torch.bincount(batch[lonely[:, 1]], minlength=count)


def nearest_to_cutoff(distance: Tensor, cutoff: float, owner: Tensor, count: int) -> Tensor:
    """How far (Angstrom) the nearest pair of each of ``count`` structures is from the cutoff [s].

    At most ``SKIN_SEARCH``, by which the cutoff was widened for these pairs' distances [e];
    ``owner`` [e] is the structure of each.
    """
    gap = (distance - cutoff).abs()
    widest = gap.new_full((count,), SKIN_SEARCH)
    return widest.scatter_reduce(0, owner, gap, "amin")


def kept_edges(
    edge_index: Tensor, batch: Tensor, keep: Tensor, edges: int
) -> tuple[Tensor, Tensor]:
    """The edges of the structures where a mask [s] on the host holds, without a wait.

    Args:
        edge_index: [2, e].
        batch: [n], the structure of each atom.
        keep: the mask.
        edges: how many edges those structures have.

    Returns:
        Which edges they are [edges], and their ``edge_index`` among the atoms that are left.
    """
    atoms = to_device(keep, batch.device)[batch]
    number = atoms.long().cumsum(0) - 1
    kept = where_of(atoms[edge_index[1]], edges)
    return kept, number[edge_index[:, kept]]


def joined_edges(parts: Sequence[Tensor], atoms: Sequence[int]) -> Tensor:
    """One ``edge_index`` for several batches of ``atoms`` atoms each, one after the other."""
    first = accumulate([0, *atoms[:-1]])
    return torch.cat([part + n for part, n in zip(parts, first, strict=True)], dim=1)
