"""The guidance alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport
from fairchem_gdeq.relax.signals.guided import Guided


@SIGNALS.register("truncated_bptt")
@dataclass(frozen=True, kw_only=True)
class TruncatedBPTT(Guided):
    """Guidance alone: the ablation lambda_eq = 0.

    Attributes:
        horizon: K.
    """

    horizon: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(horizon=self.horizon)

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``; a guess is of no use to it."""
        return self.guide(operator, start, target, self.horizon)
