"""The numbers of a training step that matter."""

from __future__ import annotations

from fairchem_gdeq.metrics import finite_or_nan
from fairchem_gdeq.relax import Operator, StepReport


def describe(report: StepReport, operator: Operator) -> dict[str, float]:
    """Means over the batch, under ``train/``; under ``graph/``, how far the frozen graph was left."""
    log = {
        "train/loss": report.loss,
        "train/delta_q_guided": finite_or_nan(report.guided),
        "train/delta_q_relaxed": finite_or_nan(report.relaxed),
        "train/diverged": float(report.diverged.float().mean()),
        "train/converged": float(report.converged.float().mean()),
        "train/equilibrium_used": float(report.contributing.float().mean()),
        "train/adjoint_unbounded": float(report.unbounded.float().mean()),
        "train/force_removed": finite_or_nan(report.removed),
        "train/shift_removed": finite_or_nan(report.shift),
        "train/adjoint_residual": finite_or_nan(report.adjoint_residual),
        "train/evaluations": float(report.evaluations.float().mean()),
        "train/vjps": float(report.vjps.float().mean()),
    }
    field = operator.field
    if getattr(field, "has_graph", False):
        at_handoff = field.refreeze(report.handoff)
        moved = (report.positions - report.handoff).norm(dim=-1)
        log["graph/moved_max"] = float(moved.max())
        log["graph/skin"] = float(at_handoff.skin().mean())
        changed = at_handoff.edges_changed(report.positions).float()
        log["graph/edges_changed"] = float(changed.mean())
    return log
