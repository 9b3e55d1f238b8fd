"""The signal of the paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.guidance import Rollout
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport
from fairchem_gdeq.relax.signals.equilibrated import Equilibrated, Equilibrium
from fairchem_gdeq.relax.signals.guided import Guided


@SIGNALS.register("gdeq")
@dataclass(frozen=True, kw_only=True)
class GDEQ(Guided, Equilibrated):
    """Algorithm 1: guidance over K steps, equilibrium solve, implicit gradient (eq. 5).

    Attributes:
        horizon: K, plain steps of the guidance window.
    """

    horizon: int = 20

    def __post_init__(self) -> None:
        Guided.__post_init__(self)
        Equilibrated.__post_init__(self)
        require_not_negative(horizon=self.horizon)

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``."""
        if not self.spare:
            report = self.guide(operator, start, target, self.horizon)
            return self.settle(operator, target, guess, report)
        return self.settle_first(operator, start, target, guess)

    def settle_first(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None
    ) -> SignalReport:
        """As ``Signal``, with the window's gradient after the solve, which says what it is needed for."""
        path = self.roll(operator, start, self.horizon)
        report = self.after(operator, path, target)
        settled = self.equilibrium(operator, report)
        if settled is None:
            return report
        report = self.judge(settled, target, report)
        report = self.guide_settled(operator, path, settled, target, report)
        return self.sharpen(settled, target, guess, report)

    def guide_settled(
        self,
        operator: Operator,
        path: Rollout,
        settled: Equilibrium,
        target: Tensor,
        report: SignalReport,
    ) -> SignalReport:
        """Add the window's gradient where X* is known; by eq. 5 it does not depend on X*."""
        return self.steer(operator, path, target, report)
