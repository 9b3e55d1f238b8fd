"""Delta Q (eq. 2) and the displacement that it measures."""

from __future__ import annotations

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import segment_max_norm, segment_mean, segment_sum
from fairchem_gdeq.relax.structures import Structures


def free_displacement(
    positions: Tensor, target: Tensor, structures: Structures, remove_shift: Tensor
) -> Tensor:
    """Minimum-image displacement target -> positions of the free atoms [n, 3], Angstrom.

    Args:
        positions, target: [n, 3], Angstrom.
        structures: batch, free atoms, masses, cells.
        remove_shift: [s] bool, structures whose mass-weighted rigid shift is taken out first.
    """
    s = structures
    pinned = remove_shift.to(positions.dtype)[:, None]
    # First roughly and before the cut at half a cell, then exactly.
    move = positions - target
    move = s.minimum_image(move - (pinned * s.periodic_shift(move))[s.batch])
    move = torch.where(s.free[:, None], move, torch.zeros_like(move))
    shift = pinned * segment_mean(move, s.masses * s.free, s.batch, s.count)
    return move - shift[s.batch] * s.free[:, None]


def delta_q(
    positions: Tensor, target: Tensor, structures: Structures, remove_shift: Tensor
) -> Tensor:
    """Eq. 2 over free atoms, sqrt(sum_i m_i |x_i - x_gt,i|^2): [s], amu^0.5 Angstrom.

    Its gradient is zero, not NaN, where positions and target coincide.
    """
    s = structures
    move = free_displacement(positions, target, s, remove_shift)
    squared = segment_sum(s.masses[:, None] * move * move, s.batch, s.count).sum(-1)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def max_displacement(
    positions: Tensor, target: Tensor, structures: Structures, remove_shift: Tensor
) -> Tensor:
    """Largest free-atom distance from the target [s], Angstrom."""
    move = free_displacement(positions, target, structures, remove_shift)
    return segment_max_norm(move, structures.batch, structures.count)
