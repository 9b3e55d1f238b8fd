"""ASE's optimizers on our operator's forces, one structure at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import ase
import numpy as np
import torch
from ase.calculators.calculator import all_changes
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS, BFGSLineSearch
from ase.optimize.optimize import Optimizer
from ase.optimize.precon import PreconLBFGS
from torch import Tensor

from benchmarks.peers.relaxations import Ended
from fairchem_gdeq.evaluation.ase_baselines import Diverged, FieldCalculator
from fairchem_gdeq.relax import Operator

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "ASE FIRE": FIRE,
    "ASE LBFGS": LBFGS,
    "ASE BFGSLineSearch": BFGSLineSearch,
    # Below 100 atoms its default is no preconditioner.
    "ASE PreconLBFGS, Exp": partial(PreconLBFGS, precon="Exp"),
}
# A step uphill, which direct forces can propose, is an error there, though the optimizer goes on.
logging.getLogger("ase.utils.linesearcharmijo").setLevel(logging.CRITICAL)


class WorkCalculator(FieldCalculator):
    """With the work done against the forces since the start as energy, eV.

    A model of direct forces has no energy, and a line search compares energies along one line. There
    the work, by the trapezoidal rule from one evaluation to the next, is what an energy would differ
    by. Over the whole way it depends on the path, which no optimizer of ours looks at.
    """

    implemented_properties = [  # noqa: RUF012 - ASE declares a list
        *FieldCalculator.implemented_properties,
        "free_energy",
    ]
    _last: tuple[np.ndarray, np.ndarray] | None = None
    _work: float = 0.0

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """As ``FieldCalculator``."""
        super().calculate(atoms, properties, system_changes)
        forces = self.results["forces"]
        if self._last is not None:
            places, before = self._last
            self._work -= float(((self.good - places) * (before + forces)).sum()) / 2
        self._last = self.good, forces
        self.results["energy"] = self.results["free_energy"] = self._work


def one_at_a_time(
    name: str,
    operators: Sequence[Operator],
    starts: Sequence[Tensor],
    numbers: Sequence[Tensor],
    fmax: float,
    max_steps: int,
) -> list[Ended]:
    """Relax each structure with default settings.

    ASE's criterion is ours: the longest force on an atom, those on fixed atoms taken as zero.

    Args:
        name: of ``OPTIMIZERS``.
        operators: of each structure alone. Net forces are taken out of theirs, as for our solvers.
        starts, numbers: X_0 [n, 3] (Angstrom) and atomic numbers [n].
        fmax: eV/Angstrom.
        max_steps: of the optimizer.
    """
    ends = []
    for operator, start, kinds in zip(operators, starts, numbers, strict=True):
        # It only ever calls its field, and forces(X) is such a call.
        calculator = WorkCalculator(operator.forces, start)  # type: ignore[arg-type]
        s = operator.structures
        atoms = ase.Atoms(
            numbers=kinds.numpy(),
            positions=calculator.good,
            cell=s.cell[0].double().numpy(),
            pbc=s.pbc[0].numpy(),
            calculator=calculator,
            constraint=FixAtoms(mask=(~s.free).numpy()),
        )
        try:
            converged = bool(OPTIMIZERS[name](atoms, logfile=None).run(fmax, max_steps))
        except Diverged:
            converged = False
        except RuntimeError as error:
            if "LineSearch failed" not in str(error):
                raise
            converged = False
        ends.append(Ended(torch.as_tensor(calculator.good), calculator.evaluations, converged))
    return ends
