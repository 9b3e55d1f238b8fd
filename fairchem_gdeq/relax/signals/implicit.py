"""The equilibrium alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport, unsolved
from fairchem_gdeq.relax.signals.equilibrated import Equilibrated


@SIGNALS.register("implicit")
@dataclass(frozen=True, kw_only=True)
class Implicit(Equilibrated):
    """Equilibrium alone: the ablation K = 0."""

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``."""
        report = unsolved(operator, start.detach(), target)
        return self.settle(operator, target, guess, report)
