"""Picard iteration: the operator itself, as the papers' plain relaxation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.solvers.base import SOLVERS, SolverState


@SOLVERS.register("picard")
@dataclass(frozen=True)
class Picard:
    """X <- G(X)."""

    def start(self, operator: Operator, positions: Tensor) -> SolverState:
        """Nothing to remember."""
        return SolverState()

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """alpha F [n, 3] (Angstrom), capped as the operator says."""
        return operator.displacement(forces), state
