"""Measuring relaxed structures against their targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairchem_gdeq.evaluation.leaderboard import position_errors
from fairchem_gdeq.evaluation.metric import RelaxedBatch, measured_metrics
from fairchem_gdeq.evaluation.records import Label, Record
from fairchem_gdeq.relax.causes import Cause, has_diverged, or_collapsed
from fairchem_gdeq.relax.loss import free_displacement, rigid_shift
from fairchem_gdeq.relax.segments import segment_max_norm, segment_sum, to_host
from fairchem_gdeq.relax.structures import Structures


def measure(
    labels: Sequence[Label],
    positions: Tensor,
    target: Tensor,
    structures: Structures,
    pin: Tensor,
    converged: Tensor,
    cause: Tensor,
    evaluations: Tensor,
    residual: Tensor,
    start: Tensor | None = None,
) -> list[Record]:
    """Records of a batch.

    A structure that diverged is left at the last positions that were finite, which say nothing of where
    it went. So it never counts as nearer than it began.

    Args:
        labels: [s] what tells structures apart.
        positions, target: [n, 3] where they ended and should have, Angstrom.
        structures, pin: as the operator has them.
        converged, cause, evaluations, residual: [s] how they were relaxed; ``cause`` by its number.
        start: [n, 3] where they began, Angstrom; None: they were not relaxed.
    """
    s = structures
    cause = or_collapsed(cause.to(positions.device), s.shortest_distances(positions))
    if start is not None:
        worse = _distance(start, target, s, pin) > _distance(positions, target, s, pin)
        back = (has_diverged(cause) & worse)[s.batch]
        positions = torch.where(back[:, None], start, positions)
    ends, exact = (positions.double(), target.double()), s.double()
    move = free_displacement(*ends, exact, pin)
    number = segment_sum(s.free.double(), s.batch, s.count).clamp_min(1.0)
    errors = position_errors(positions, target, s)
    columns = {
        "delta_q": _distance(positions, target, s, pin),
        "max_displacement": segment_max_norm(move, s.batch, s.count),
        "mean_distance": segment_sum(move.norm(dim=-1), s.batch, s.count) / number,
        "mae": segment_sum(move.abs().mean(-1), s.batch, s.count) / number,
        "shift_removed": rigid_shift(*ends, exact, pin),
        "leaderboard_distance": errors.distance,
        "leaderboard_mae": errors.absolute,
        "leaderboard_mse": errors.squared,
    }
    batch = RelaxedBatch(*ends, move, exact)
    others = {name: measured(batch) for name, measured in measured_metrics().items()}
    host = to_host(*columns.values(), *others.values()).tolist()
    own = dict(zip(columns, host[: len(columns)], strict=True)) | {
        "converged": (converged.to(cause.device) & ~has_diverged(cause)).tolist(),
        "diverged": has_diverged(cause).tolist(),
        "cause": [Cause(number).key for number in cause.tolist()],
        "evaluations": evaluations.tolist(),
        "residual": residual.tolist(),
        "free_atoms": errors.atoms.tolist(),
    }
    further = dict(zip(others, host[len(columns) :], strict=True))
    return [
        Record(
            sid=label.sid,
            row=label.row,
            **{name: values[i] for name, values in own.items()},
            others={name: values[i] for name, values in further.items()},
        )
        for i, label in enumerate(labels)
    ]


def _distance(positions: Tensor, target: Tensor, s: Structures, pin: Tensor) -> Tensor:
    """Delta Q [s], amu^0.5 Angstrom, in double precision."""
    move = free_displacement(positions.double(), target.double(), s.double(), pin)
    squared = (s.masses.double()[:, None] * move * move).sum(-1)
    return segment_sum(squared, s.batch, s.count).sqrt()
