"""The loss: Delta Q (eq. 2) or another distance from the target, and what of it counts (eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fairchem_gdeq.relax.registry import Registry
from fairchem_gdeq.relax.rigid import SHIFT_AND_TURN, best_turn
from fairchem_gdeq.relax.segments import segment_max_norm, segment_mean, segment_sum, transformed
from fairchem_gdeq.relax.structures import Structures


def _image(positions: Tensor, target: Tensor, s: Structures, pin: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum-image displacement [n, 3] and the rough shift [s, 3] taken out of it before the cut."""
    move = positions - target
    rough = (pin > 0).to(move.dtype)[:, None] * s.periodic_shift(move)
    return s.minimum_image(move - rough[s.batch]), rough


def free_displacement(
    positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
) -> Tensor:
    """Minimum-image displacement target -> positions of the free atoms [n, 3], Angstrom.

    Args:
        positions, target: [n, 3], Angstrom.
        structures: batch, free atoms, masses, cells.
        pin: [s], of ``rigid``: structures whose mass-weighted rigid shift, and rotation, is taken
            out first. A bool is a shift.
    """
    s = structures
    # First roughly and before the cut at half a cell, then exactly.
    move, _ = _image(positions, target, s, pin)
    if not all(map(any, zip(s.known.periodic, s.known.anchored, strict=True))):
        turn = best_turn(move, target, s, pin)[s.batch]
        there = transformed(target + move, turn)
        move = torch.where((pin == SHIFT_AND_TURN)[s.batch, None], there - target, move)
    move = torch.where(s.free[:, None], move, torch.zeros_like(move))
    shift = (pin > 0)[:, None] * segment_mean(move, s.masses * s.free, s.batch, s.count)
    return move - shift[s.batch] * s.free[:, None]


def rigid_shift(positions: Tensor, target: Tensor, structures: Structures, pin: Tensor) -> Tensor:
    """Length [s] of the rigid shift that ``free_displacement`` takes out, Angstrom."""
    s = structures
    move, rough = _image(positions, target, s, pin)
    fine = (pin > 0)[:, None] * segment_mean(move, s.masses * s.free, s.batch, s.count)
    length: Tensor = torch.linalg.vector_norm(rough + fine, dim=-1)
    return length


def delta_q(positions: Tensor, target: Tensor, structures: Structures, pin: Tensor) -> Tensor:
    """Eq. 2 over free atoms, sqrt(sum_i m_i |x_i - x_gt,i|^2): [s], amu^0.5 Angstrom.

    Its gradient is zero, not NaN, where positions and target coincide.
    """
    s = structures
    move = free_displacement(positions, target, s, pin)
    squared = segment_sum(s.masses[:, None] * move * move, s.batch, s.count).sum(-1)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def max_displacement(
    positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
) -> Tensor:
    """Largest free-atom distance from the target [s], Angstrom."""
    move = free_displacement(positions, target, structures, pin)
    return segment_max_norm(move, structures.batch, structures.count)


class Loss(Protocol):
    """A loss for each structure of a batch, differentiable by the positions."""

    def __call__(
        self, positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
    ) -> Tensor:
        """[s], from positions and target [n, 3] (Angstrom); ``pin`` [s] as in ``free_displacement``."""
        ...


LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("delta_q")
@dataclass(frozen=True)
class DeltaQ:
    """Eq. 2, the papers' loss."""

    def __call__(
        self, positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
    ) -> Tensor:
        """``delta_q`` [s], amu^0.5 Angstrom."""
        return delta_q(positions, target, structures, pin)


@LOSSES.register("log_delta_q")
@dataclass(frozen=True)
class LogDeltaQ:
    """scale * log(1 + Delta Q / scale): a structure far from its target pulls less than one near it.

    Near the target it is Delta Q; at Delta Q = scale its gradient is half as long.

    Attributes:
        scale: amu^0.5 Angstrom.
    """

    scale: float = 3.0

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a scale that is not positive.
        """
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} of log_delta_q: expected a positive number")

    def __call__(
        self, positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
    ) -> Tensor:
        """[s], amu^0.5 Angstrom."""
        far = delta_q(positions, target, structures, pin)
        return self.scale * torch.log1p(far / self.scale)


def weighted_mean(losses: Tensor, counted: Tensor, weight: float, structures: int) -> Tensor:
    """One term of eq. 5: ``weight`` times the mean loss over a batch.

    L = lambda_guide mean(L(X_K)) + lambda_eq mean(L(X*)), each mean over all ``structures`` of the
    batch, of which those that are not counted (diverged, not converged, adjoint not solved)
    contribute zero.

    Args:
        losses: [k] of some or all structures of the batch.
        counted: [k] bool.
        weight: lambda of the term.
        structures: s.
    """
    return weight * (torch.where(counted, losses, torch.zeros_like(losses)).sum() / structures)
