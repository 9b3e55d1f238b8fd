"""Force training on frames: a control without any gradient by structures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport, unsolved


@SIGNALS.register("ft_static")
@dataclass(frozen=True)
class FTStatic:
    """Forces of labelled frames alone; the control ``ft_static`` of the G-DEQ paper, Table 7.

    Frames are no business of the operator: ``training.replay`` makes every step of the run one of
    forces. As a signal it has no gradient.
    """

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """The report of X_0; nothing is added to any ``.grad``."""
        return unsolved(operator, start.detach(), target)
