"""G-DEQ without its decoupling: a control."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.guidance import Rollout, differentiate_path
from fairchem_gdeq.relax.loss import weighted_mean
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.signals.base import SIGNALS, SignalReport
from fairchem_gdeq.relax.signals.equilibrated import Equilibrium
from fairchem_gdeq.relax.signals.gdeq import GDEQ


@SIGNALS.register("coupled")
@dataclass(frozen=True, kw_only=True)
class Coupled(GDEQ):
    """The equilibrium's loss reaches the guidance window too, as if X* moved along with X_K.

    The paper detaches X_K, because dX*/dX_K vanishes for a contracting map. Here it is the identity: the
    window's gradient is that of lambda_guide L(X_K) + lambda_eq L(X_K + d) with d = X* - X_K held fixed.
    """

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: as ``GDEQ``, or another gradient of the window than the sweep.
        """
        super().__post_init__()
        if self.guidance_gradient != "sweep":
            raise ValueError(
                f"guidance_gradient={self.guidance_gradient!r}: expected sweep for the signal coupled"
            )

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """As ``Signal``."""
        return self.settle_first(operator, start, target, guess)

    def guide_settled(
        self,
        operator: Operator,
        path: Rollout,
        settled: Equilibrium,
        target: Tensor,
        report: SignalReport,
    ) -> SignalReport:
        """As ``steer``, with both losses; that at X* only of structures that have reached it."""
        own, found = self.loss_of(operator, target), settled.solution
        ahead = torch.zeros_like(path.positions)
        ahead = ahead.index_copy(0, settled.atoms, found.positions - path.positions[settled.atoms])
        reached = torch.zeros_like(report.converged).index_copy(0, settled.rows, found.converged)

        def both(x: Tensor) -> Tensor:
            there = torch.where(reached, own(x + ahead), 0.0)
            return self.lambda_guide * own(x) + self.lambda_eq * there

        wanted = ~(path.diverged | report.spared)
        differentiate_path(path, both, 1.0, wanted)
        guided = own(path.positions).detach()
        total = weighted_mean(guided, wanted, self.lambda_guide, len(wanted))
        return replace(report, loss=float(total), vjps=torch.where(wanted, path.evaluations, 0))
