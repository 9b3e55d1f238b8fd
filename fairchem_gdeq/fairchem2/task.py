"""The IS2RS task: which fields of a batch go in, what is predicted, how it is relaxed and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.metrics import Basin, Record, measure
from fairchem_gdeq.relax import Arrival, Course, Operator, Structures, make_solver, solve
from fairchem_gdeq.relax.guidance import rollout


@dataclass(frozen=True)
class Relaxer:
    """How a relaxed structure is obtained from X_0 at evaluation and prediction.

    Attributes:
        horizon: plain steps X + alpha F first; as many as the training window, so that what is
            evaluated is what was trained. 0 hands X_0 to the solver.
        solver: ``picard``, ``anderson``, ``fire`` or ``lbfgs``, then; and its options.
        fmax: eV/Angstrom.
        max_steps: displacements allowed to the solver.
    """

    horizon: int = 0
    solver: str = "lbfgs"
    solver_options: dict[str, Any] = field(default_factory=dict)
    fmax: float = 0.02
    max_steps: int = 300

    @property
    def course(self) -> Course:
        """The same for a ``Stream``."""
        return Course(
            self.horizon,
            lambda: make_solver(self.solver, **self.solver_options),
            self.fmax,
            self.max_steps,
        )


@registry.register_task("is2rs")
@dataclass(frozen=True)
class IS2RS:
    """Initial structure to relaxed structure.

    Predicts the relaxed positions of every free atom from ``batch.pos``; the target is
    ``batch.pos_relaxed``, the loss Delta Q (eq. 2), the metrics those of ``fairchem_gdeq.metrics``.

    Attributes:
        alpha: step of the operator, Angstrom per (eV/Angstrom).
        cap: longest displacement of an atom in one plain step, Angstrom, or None.
        remove_drift: None for the default of ``Operator.build``.
        relaxer: how structures are relaxed for scoring.
        basin: when one counts as captured.
    """

    alpha: float = 0.03
    cap: float | None = 0.1
    remove_drift: bool | None = None
    relaxer: Relaxer = field(default_factory=Relaxer)
    basin: Basin = field(default_factory=Basin)

    def structures(self, batch: AtomicData) -> Structures:
        """The method's view of a batch."""
        return Structures(
            batch=batch.batch,
            free=batch.fixed == 0,
            masses=batch.mass if "mass" in batch else batch.masses,
            cell=batch.cell,
            pbc=batch.pbc,
        )

    def operator(
        self,
        model: HydraModel,
        tasks: list[Task],
        batch: AtomicData,
        alpha: Tensor | None = None,
    ) -> Operator:
        """G with its graph frozen at the batch's positions."""
        return self._operator(HydraForceField.freeze(model, tasks, batch), batch, alpha)

    def arrival(self, key: int, model: HydraModel, tasks: list[Task], row: AtomicData) -> Arrival:
        """A batch of one structure as it enters a ``Stream``; its graphs are built there."""
        field = HydraForceField.follow(model, tasks, row)
        return Arrival(key, self._operator(field, row, None), row.pos)

    def _operator(
        self, field: HydraForceField, batch: AtomicData, alpha: Tensor | None
    ) -> Operator:
        return Operator.build(
            field,
            self.structures(batch),
            self.alpha if alpha is None else alpha,
            self.cap,
            self.remove_drift,
        )

    @torch.no_grad()
    def relax(
        self, model: HydraModel, tasks: list[Task], batch: AtomicData, alpha: Tensor | None = None
    ) -> tuple[list[Record], Tensor]:
        """Relax a batch as a user would, with a fresh graph at every step, and score it.

        Returns:
            Records (distances are NaN-free; without ``pos_relaxed`` in the batch they are measured
            from X_0) and positions [n, 3], Angstrom.
        """
        field = HydraForceField.follow(model, tasks, batch)  # no graph at X_0 that nothing reads
        operator = self._operator(field, batch, alpha)
        path = rollout(operator, batch.pos, self.relaxer.horizon)
        solver = make_solver(self.relaxer.solver, **self.relaxer.solver_options)
        end = solve(operator, path.positions, solver, self.relaxer.fmax, self.relaxer.max_steps)
        records = measure(
            [str(sid) for sid in batch.sid],
            end.positions,
            batch.pos_relaxed if "pos_relaxed" in batch else batch.pos,
            operator.structures,
            operator.pin,
            converged=end.converged & ~path.diverged,
            diverged=end.diverged | path.diverged,
            evaluations=end.evaluations + path.evaluations,
            residual=end.residual,
        )
        return records, end.positions

    def score_positions(
        self,
        model: HydraModel,
        tasks: list[Task],
        batch: AtomicData,
        positions: Tensor,
    ) -> list[Record]:
        """Records of given positions [n, 3], Angstrom, such as X_0: nothing is relaxed.

        Raises:
            ValueError: the batch has no ``pos_relaxed``.
        """
        if "pos_relaxed" not in batch:
            raise ValueError("this split has no targets to score against: use --mode predict")
        operator = self._operator(HydraForceField.follow(model, tasks, batch), batch, None)
        count, device = operator.structures.count, batch.pos.device
        none = torch.zeros(count, dtype=torch.bool, device=device)
        return measure(
            [str(sid) for sid in batch.sid],
            positions,
            batch.pos_relaxed,
            operator.structures,
            operator.pin,
            converged=none,
            diverged=none,
            evaluations=none.long(),
            residual=torch.full((count,), torch.nan, device=device),
        )
