"""The numbers of a training step that matter."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from fairchem_gdeq.relax import Operator, SignalReport


class GraphField(Protocol):
    """What a frozen field that ``has_graph`` says of its graph."""

    def skin(self) -> Tensor:
        """How far two atoms may move together before an edge can change, per structure [s], Angstrom."""
        ...

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa."""
        ...


def describe(report: SignalReport, operator: Operator) -> dict[str, float]:
    """Means over the batch, under ``train/``; under ``graph/``, how far the frozen graph was left."""
    log = {
        "train/loss": report.loss,
        "train/delta_q_guided": finite_or_nan(report.guided),
        "train/delta_q_relaxed": finite_or_nan(report.relaxed),
        "train/diverged": float(report.diverged.float().mean()),
        "train/converged": float(report.converged.float().mean()),
        "train/equilibrium_used": float(report.contributing.float().mean()),
        "train/spared": float(report.spared.float().mean()),
        "train/adjoint_unbounded": float(report.unbounded.float().mean()),
        "train/force_removed": finite_or_nan(report.removed),
        "train/shift_removed": finite_or_nan(report.shift),
        "train/adjoint_residual": finite_or_nan(report.adjoint_residual),
        "train/evaluations": float(report.evaluations.float().mean()),
        "train/vjps": float(report.vjps.float().mean()),
    }
    field = operator.field
    if getattr(field, "has_graph", False):
        at_handoff = cast(GraphField, field.freeze(report.handoff))
        moved = (report.positions - report.handoff).norm(dim=-1)
        log["graph/moved_max"] = float(moved.max())
        log["graph/skin"] = float(at_handoff.skin().mean())
        changed = at_handoff.edges_changed(report.positions).float()
        log["graph/edges_changed"] = float(changed.mean())
    return log


def finite_or_nan(values: Tensor) -> float:
    """Mean of the finite entries [s], NaN if there are none; for logs."""
    finite = values[torch.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
