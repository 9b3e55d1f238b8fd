"""Rigid motions that leave the forces as they are, and how they are taken out.

Where no atom is fixed and the field does not feel a rigid shift, every shift is a null vector of
I - J_G; where the structure is not periodic either, and the field turns with it, so is every rotation
about its centre. Direct forces need not sum to zero, nor need their torques: the structure would drift
and spin. ``pin`` [s] says what is taken out of each structure: ``FREE``, ``SHIFT`` or ``SHIFT_AND_TURN``.
(Rotations of a wire about its axis, periodic in that one direction, are left in.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import segment_mean, segment_sum, transformed
from fairchem_gdeq.relax.structures import Known, Structures

FREE, SHIFT, SHIFT_AND_TURN = 0, 1, 2
# Share of the moment of inertia below which a molecule counts as a line, which has no third rotation.
LINE = 1e-5


def pinned_motions(known: Known, shifts: bool, turns: bool) -> tuple[int, ...]:
    """What is taken out of each structure: nothing where an atom is fixed, else the ``shifts``, and the
    ``turns`` where it is not periodic either. The two say what the field does not feel.
    """
    return tuple(
        FREE if anchored or not shifts else SHIFT_AND_TURN if turns and not periodic else SHIFT
        for anchored, periodic in zip(known.anchored, known.periodic, strict=True)
    )


def without_turn(vectors: Tensor, positions: Tensor, s: Structures, pin: Tensor) -> Tensor:
    """Vectors [n, 3] at positions [n, 3] less their part along rotations, where ``pin`` says so.

    All of those atoms are free. What is left has no torque about the centre of the atoms, so it is
    orthogonal to every rotation, and for a field that turns with the structure the Jacobian keeps the
    rotations as right and, where the forces vanish, as left null vectors.
    """
    turned = (pin == SHIFT_AND_TURN)[s.batch, None]
    ones = torch.ones_like(s.masses).to(vectors.dtype)
    arms = positions - segment_mean(positions, ones, s.batch, s.count)[s.batch]
    arms = torch.where(turned, arms, 0.0)
    torque = segment_sum(torch.linalg.cross(arms, vectors), s.batch, s.count)
    spread = segment_sum(arms[:, :, None] * arms[:, None, :], s.batch, s.count)
    trace = spread.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    unit = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    inertia = trace * unit - spread
    # On a line the torque has no part along it, and for what is across it inertia and trace agree.
    line = torch.linalg.det(inertia)[:, None, None] <= LINE * trace**3
    tiny = torch.finfo(vectors.dtype).tiny ** 0.25
    inertia = torch.where(line, (trace + tiny) * unit, inertia)
    turn = transformed(torque, torch.linalg.inv_ex(inertia).inverse)  # which is symmetric
    rotation = torch.linalg.cross(turn[s.batch], arms)
    return vectors - torch.where(turned, rotation, 0.0)


def best_turn(move: Tensor, target: Tensor, s: Structures, pin: Tensor) -> Tensor:
    """Rotations [s, 3, 3] about the centre of mass that bring target + move nearest to the target.

    Kabsch's, mass-weighted; the unit matrix where ``pin`` does not ask for a rotation. Acting on row
    vectors from the right. A constant for autograd: by the envelope theorem the distance's gradient
    is exact with the rotation held.
    """
    with torch.no_grad():
        weights = s.masses * s.free
        there = (target + move).double()
        here = target.double()
        arms = there - segment_mean(there, weights, s.batch, s.count)[s.batch]
        goal = here - segment_mean(here, weights, s.batch, s.count)[s.batch]
        outer = weights[:, None, None] * arms[:, :, None] * goal[:, None, :]
        covariance = segment_sum(outer.double(), s.batch, s.count)
        asked = (pin == SHIFT_AND_TURN)[:, None, None]
        unit = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
        u, _, v = torch.linalg.svd(torch.where(asked, covariance, unit).nan_to_num())
        # No mirror images: the least important axis turns back.
        sign = torch.linalg.det(u @ v)
        v = torch.cat([v[:, :2], v[:, 2:] * sign[:, None, None]], dim=1)
        return torch.where(asked, u @ v, unit).to(move.dtype)
