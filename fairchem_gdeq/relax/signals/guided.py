"""Phase 1 of Algorithm 1, for the signals that have it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS
from fairchem_gdeq.relax.loss import LOSSES, DeltaQ, Loss
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.relax.signals.base import SignalReport, unsolved


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Settings and gradient of the guidance window.

    Attributes:
        lambda_guide: its weight in eq. 5.
        guidance_gradient: ``sweep`` (constant memory) or ``stored_graph`` (reference).
        fmax: a structure whose forces fall below it needs no more plain steps, eV/Angstrom.
        loss: of X_K; a loss or its name.
    """

    lambda_guide: float = 1.0
    guidance_gradient: str = "sweep"
    fmax: float = 0.02
    loss: Loss = field(default_factory=DeltaQ)

    def __post_init__(self) -> None:
        """Make what is given by its name.

        Raises:
            ValueError: a name or number that cannot be meant; says which.
        """
        object.__setattr__(self, "loss", LOSSES.make(self.loss))
        if self.guidance_gradient not in GUIDANCE_GRADIENTS:
            raise ValueError(
                f"guidance_gradient={self.guidance_gradient!r}: expected one of "
                + ", ".join(GUIDANCE_GRADIENTS)
            )
        require_not_negative(lambda_guide=self.lambda_guide, fmax=self.fmax)

    def guide(
        self, operator: Operator, start: Tensor, target: Tensor, horizon: int
    ) -> SignalReport:
        """Roll out ``horizon`` steps from start [n, 3] and add lambda_guide's gradient."""
        path, _, total = GUIDANCE_GRADIENTS[self.guidance_gradient](
            operator,
            start,
            horizon,
            lambda x: self.loss(x, target, operator.structures, operator.pin),
            self.lambda_guide,
            self.fmax,
        )
        report = unsolved(operator, path.positions, target)
        return replace(
            report,
            loss=total,
            diverged=path.diverged,
            evaluations=path.evaluations,
            vjps=torch.where(path.diverged, 0, path.evaluations),
        )
