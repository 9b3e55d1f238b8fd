"""How structures are relaxed: the settings that evaluation, prediction and the solve of a step share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairchem_gdeq.relax.solvers import LBFGS, SOLVERS, Solver


@dataclass(frozen=True)
class Relaxer:
    """Plain steps, then a solver.

    Attributes:
        horizon: plain steps X + alpha F first, fewer where the forces fall below ``fmax``; as many as
            the training window, so that what is evaluated is what was trained. 0 hands X_0 to the
            solver.
        solver: what goes on from there; its name (``picard``, ``anderson``, ``fire`` or ``lbfgs``), or
            a mapping with ``name`` and options, may be given in its place.
        fmax: convergence, eV/Angstrom.
        max_steps: displacements allowed to the solver.
        one_shot: X_0 + alpha F(X_0) is the end, and no force is asked there.
    """

    horizon: int = 0
    solver: Solver[Any] = field(default_factory=LBFGS)
    fmax: float = 0.02
    max_steps: int = 300
    one_shot: bool = False

    def __post_init__(self) -> None:
        """Make the solver.

        Raises:
            ValueError: no such solver or option, a negative number, or more steps than one shot.
        """
        object.__setattr__(self, "solver", SOLVERS.make(self.solver))
        require_not_negative(horizon=self.horizon, fmax=self.fmax, max_steps=self.max_steps)
        if self.one_shot and self.horizon != 1:
            raise ValueError(f"horizon={self.horizon}: expected 1 for one_shot=true")


def require_not_negative(**values: float) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        ValueError: one is negative or no number; names it.
    """
    for key, value in values.items():
        if not value >= 0:
            raise ValueError(f"{key}={value}: expected a number >= 0")
