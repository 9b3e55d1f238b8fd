"""The signal of the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.guidance import differentiate_path, rollout
from fairchem_gdeq.relax.loss import delta_q
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
        spare: a structure whose X* is nearer to its target than this (Delta Q, amu^0.5 Angstrom) is not
            differentiated: what is right already costs no gradient. 0 differentiates all.
    """

    horizon: int = 20
    spare: float = 0.0

    def __post_init__(self) -> None:
        Guided.__post_init__(self)
        Equilibrated.__post_init__(self)
        require_not_negative(horizon=self.horizon, spare=self.spare)
        if self.spare and self.guidance_gradient != "sweep":
            raise ValueError(f"spare={self.spare} needs guidance_gradient=sweep")

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``."""
        if not self.spare:
            report = self.guide(operator, start, target, self.horizon)
            return self.settle(operator, target, guess, report)
        path = rollout(operator, start, self.horizon, self.fmax)
        report = self.after(operator, path, target)
        settled = self.equilibrium(operator, report)
        if settled is None:
            return report
        report = replace(report, spared=self._right(settled, target, report))
        wanted = ~(path.diverged | report.spared)
        _, total = differentiate_path(
            path, self.loss_of(operator, target), self.lambda_guide, wanted
        )
        vjps = torch.where(wanted, path.evaluations, 0)
        return self.sharpen(settled, target, guess, replace(report, loss=total, vjps=vjps))

    def _right(self, settled: Equilibrium, target: Tensor, report: SignalReport) -> Tensor:
        """Whether each structure [s] of the batch has reached its minimum."""
        sub, found = settled.operator, settled.solution
        distance = delta_q(found.positions, target[settled.atoms], sub.structures, sub.pin)
        right = found.converged & (distance < self.spare)
        return report.spared.index_copy(0, settled.rows, right)
