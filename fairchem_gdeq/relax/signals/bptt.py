"""The full unroll of the BPTT paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport
from fairchem_gdeq.relax.signals.guided import Guided


@SIGNALS.register("bptt")
@dataclass(frozen=True, kw_only=True)
class BPTT(Guided):
    """Full unroll (BPTT paper, eq. 3-4), stopped where forces are below fmax.

    Attributes:
        max_unroll: T_max, the most steps.
    """

    max_unroll: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(max_unroll=self.max_unroll)

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``; a guess is of no use to it."""
        return self.guide(operator, start, target, self.max_unroll)
