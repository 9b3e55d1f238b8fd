"""Phase 1 of Algorithm 1, for the signals that have it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.guidance import (
    GUIDANCE_GRADIENTS,
    Rollout,
    StructureLoss,
    differentiate_path,
    guidance_by_stored_graph,
    rollout,
)
from fairchem_gdeq.relax.kept import Memory, bytes_on, memory_of
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
        guidance_memory: of ``sweep``, how much memory graphs of the last steps may take, which are not
            evaluated a second time then: ``"4GB"``, ``"500MB"``, bytes, a share of a GPU's memory below
            1, or None. The gradient is the same. What one step takes is measured on the first.
        spare: a structure that ends nearer to its target than this (Delta Q, amu^0.5 Angstrom) is not
            differentiated: what is right already costs no gradient. The end is X*, or X_K where no
            equilibrium is sought. 0 differentiates all.
    """

    lambda_guide: float = 1.0
    guidance_gradient: str = "sweep"
    guidance_memory: Memory = None
    fmax: float = 0.02
    loss: Loss = field(default_factory=DeltaQ)
    spare: float = 0.0

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
        require_not_negative(lambda_guide=self.lambda_guide, fmax=self.fmax, spare=self.spare)
        memory_of("guidance_memory", self.guidance_memory)
        if self.guidance_gradient != "sweep":
            for key, value in (("spare", self.spare), ("guidance_memory", self.guidance_memory)):
                if value:
                    raise ValueError(f"{key}={value} needs guidance_gradient=sweep")

    def guide(
        self, operator: Operator, start: Tensor, target: Tensor, horizon: int
    ) -> SignalReport:
        """Roll out ``horizon`` steps from start [n, 3] and add lambda_guide's gradient."""
        if self.guidance_gradient == "stored_graph":
            path, _, total = guidance_by_stored_graph(
                operator,
                start,
                horizon,
                self.loss_of(operator, target),
                self.lambda_guide,
                self.fmax,
            )
            report = self.after(operator, path, target)
            vjps = torch.where(path.diverged, 0, path.evaluations)
            return replace(report, loss=total, vjps=vjps)
        path = self.roll(operator, start, horizon)
        report = self.after(operator, path, target)
        if self.spare:
            right = ~path.diverged & (report.guided < self.spare)
            report = replace(report, spared=right)
        return self.steer(operator, path, target, report)

    def roll(self, operator: Operator, start: Tensor, horizon: int) -> Rollout:
        """``horizon`` steps from start [n, 3], ready for ``steer``.

        Raises:
            ValueError: there is memory for graphs, and they cannot be kept: on this device by a share, or
                for a field that says it ``recomputes``.
        """
        memory = bytes_on(start.device, "guidance_memory", self.guidance_memory)
        if memory and getattr(operator.field, "recomputes", False):
            raise ValueError(
                f"guidance_memory={self.guidance_memory!r}: this model has activation checkpointing, so "
                "a graph is of use for the latest evaluation alone. Expected null, or a model with "
                "activation_checkpointing: false"
            )
        return rollout(operator, start, horizon, self.fmax, memory)

    def steer(
        self, operator: Operator, path: Rollout, target: Tensor, report: SignalReport
    ) -> SignalReport:
        """Add lambda_guide's gradient of a rollout, but for structures that are spared."""
        wanted = ~(path.diverged | report.spared)
        loss = self.loss_of(operator, target)
        _, total = differentiate_path(path, loss, self.lambda_guide, wanted)
        return replace(report, loss=total, vjps=torch.where(wanted, path.evaluations, 0))

    def loss_of(self, operator: Operator, target: Tensor) -> StructureLoss:
        """The loss [s] by positions [n, 3]."""
        return lambda x: self.loss(x, target, operator.structures, operator.pin)

    def after(self, operator: Operator, path: Rollout, target: Tensor) -> SignalReport:
        """The report of a rollout that was not differentiated yet."""
        report = unsolved(operator, path.positions, target)
        return replace(report, cause=path.cause, evaluations=path.evaluations)
