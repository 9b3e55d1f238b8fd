"""Direct structure prediction: a control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport
from fairchem_gdeq.relax.signals.guided import Guided


@SIGNALS.register("direct")
@dataclass(frozen=True, kw_only=True)
class Direct(Guided):
    """One shot: X_0 + alpha F(X_0) is the relaxed structure (DSP in Table 7 of the G-DEQ paper).

    The backbone's head of forces is the coordinate head, and alpha the scale of its output. What is
    trained so predicts displacements and is no potential any more.
    """

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``; a guess is of no use to it."""
        return self.guide(operator, start, target, 1)
