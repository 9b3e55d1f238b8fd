"""The numbers of a training step that matter."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairchem_gdeq.evaluation.failures import CAUSES
from fairchem_gdeq.relax import Operator, SignalReport
from fairchem_gdeq.relax.segments import segment_max_norm, to_host
from fairchem_gdeq.training.ranks import gather


class GraphField(Protocol):
    """What a frozen field that ``has_graph`` says of its graph."""

    def skin(self) -> Tensor:
        """How far two atoms may move together before an edge can change, per structure [s], Angstrom."""
        ...

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa."""
        ...


def describe(report: SignalReport, operator: Operator) -> dict[str, float]:
    """What became of a step's structures, those of all ranks.

    Under ``train/`` are means over structures, each of those for which the number is finite. Under
    ``graph/`` is how far the frozen graph was left.
    """
    s = operator.structures
    columns = {
        "train/loss": torch.full_like(report.guided, report.loss, dtype=torch.float64),
        "train/delta_q_guided": report.guided,
        "train/delta_q_relaxed": report.relaxed,
        "train/structures": torch.ones_like(report.guided),
        "train/diverged": report.diverged,
        **{cause.step_key: report.cause == cause for cause in CAUSES},
        "train/converged": report.converged,
        "train/equilibrium_used": report.contributing,
        "train/spared": report.spared,
        "train/adjoint_unbounded": report.unbounded,
        "train/adjoint_unsolved": report.unsolved,
        "train/force_removed": report.removed,
        "train/shift_removed": report.shift,
        "train/adjoint_residual": report.adjoint_residual,
        "train/evaluations": report.evaluations,
        "train/vjps": report.vjps,
    }
    field = operator.field
    if getattr(field, "has_graph", False):
        at_handoff = cast(GraphField, field.freeze(report.handoff))
        moved = report.positions - report.handoff
        columns["graph/moved_max"] = segment_max_norm(moved, s.batch, s.count)
        columns["graph/skin"] = at_handoff.skin()
        columns["graph/edges_changed"] = at_handoff.edges_changed(report.positions)
    values = to_host(*columns.values()).T.tolist()  # a list for each structure
    every = np.array(gather(values)).T
    return {key: _pooled(key, row) for key, row in zip(columns, every, strict=True)}


def _pooled(key: str, values: NDArray[np.float64]) -> float:
    """One number of those of all structures; NaN where none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan")
    if key == "train/structures":
        return float(finite.sum())
    return float(finite.max() if key.endswith("_max") else finite.mean())
