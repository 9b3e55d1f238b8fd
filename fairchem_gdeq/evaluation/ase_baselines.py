"""ASE's own optimizers on a force field: the relaxations that fine-tuning is compared with."""

from __future__ import annotations

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from torch import Tensor

from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.task import Batch, RelaxationTask, labels_of
from fairchem_gdeq.relax import ForceField
from fairchem_gdeq.relax.causes import Cause
from fairchem_gdeq.relax.packs import MAX_FORCE, MAX_TRAVEL

OPTIMIZERS: dict[str, type[Optimizer]] = {"ase_fire": FIRE, "ase_lbfgs": LBFGS}


class Diverged(ArithmeticError):
    """A force or a displacement is beyond all bounds, or not a number."""


class FieldCalculator(Calculator):
    """Forces of a ``ForceField`` for ASE, as the model gives them: no net force taken out.

    Attributes:
        evaluations: how often the model was called.
        good: the last positions [n, 3] that were not diverged, Angstrom.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE declares a list

    def __init__(self, field: ForceField, start: Tensor) -> None:
        """``start``: X_0 [n, 3], Angstrom, with the dtype and device of the model."""
        super().__init__()
        self.field, self.start, self.evaluations = field, start, 0
        self.good = start.double().cpu().numpy()

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results``.

        Raises:
            Diverged: the structure is.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # ASE's method has set them
        positions = torch.as_tensor(self.atoms.positions).to(self.start)
        travel = (positions - self.start).norm(dim=-1).max()
        if not travel < MAX_TRAVEL:
            raise Diverged(f"an atom is {travel:.1f} Angstrom from its start")
        with torch.no_grad():
            forces = self.field(positions)
        self.evaluations += 1
        force = forces.norm(dim=-1).max()
        if not force < MAX_FORCE:
            raise Diverged(f"a force is {force:.1f} eV/Angstrom")
        self.good = self.atoms.positions.copy()
        # ASE asks for an energy to log at every step. A model of forces alone has none; neither
        # optimizer uses it.
        self.results = {"forces": forces.double().cpu().numpy(), "energy": np.nan}


def relax_with_ase(
    name: str, is2rs: RelaxationTask, field: ForceField, batch: Batch
) -> tuple[list[Record], Tensor]:
    """Relax each structure from X_0 with an optimizer of ASE, one after the other, and score it.

    The optimizer has ASE's default settings, the relaxer's fmax and as many steps as the relaxer's
    plain steps and solver together.

    Args:
        name: ``ase_fire`` or ``ase_lbfgs``.
        field: unfrozen.

    Returns:
        Records and positions [n, 3] (Angstrom), as ``RelaxationTask.relax_with``.
    """
    operator = is2rs.operator_of(field, batch)
    s, budget = operator.structures, is2rs.relaxer
    positions = batch.pos.clone()
    ends: list[tuple[bool, int, int, float]] = []
    for index in range(s.count):
        one = torch.arange(s.count, device=s.batch.device) == index
        rows = s.atoms_of(one)
        calculator = FieldCalculator(operator.select(one).field, batch.pos[rows])
        atoms = ase.Atoms(
            numbers=batch.atomic_numbers[rows].cpu().numpy(),
            positions=calculator.good,
            cell=s.cell[index].double().cpu().numpy(),
            pbc=s.pbc[index].cpu().numpy(),
            calculator=calculator,
            constraint=FixAtoms(mask=(~s.free[rows]).cpu().numpy()),
        )
        cause, residual = Cause.NONE, np.inf
        try:
            optimizer = OPTIMIZERS[name](atoms, logfile=None)
            if not optimizer.run(budget.fmax, budget.horizon + budget.max_steps):
                cause = Cause.OUT_OF_STEPS
            residual = float(np.linalg.norm(atoms.get_forces(), axis=1).max(initial=0.0))
        except Diverged:
            cause = Cause.EXPLODED
        ends.append((cause == Cause.NONE, int(cause), calculator.evaluations, residual))
        positions[rows] = torch.as_tensor(calculator.good).to(positions)
    converged, causes, evaluations, residuals = (
        torch.tensor(column) for column in zip(*ends, strict=True)
    )
    records = measure(
        labels_of(batch),
        positions,
        batch.pos_relaxed,
        s,
        operator.pin,
        converged=converged,
        cause=causes,
        evaluations=evaluations,
        residual=residuals,
        start=batch.pos,
    )
    return records, positions
