"""What a training signal is, what it reports, and how one is made from its name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from fairchem_gdeq.relax.causes import has_diverged
from fairchem_gdeq.relax.loss import delta_q, rigid_shift
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.registry import Registry


@dataclass(frozen=True)
class SignalReport:
    """What a training step saw, for every structure of the batch.

    Attributes:
        loss: value of eq. 5 over the structures that contributed.
        guided: [s] Delta Q at X_K (at X_0 where K = 0).
        relaxed: [s] Delta Q at X*; NaN where not solved.
        cause: [s] int8, the ``Cause`` of the rollout or the solve.
        converged: [s] bool, the equilibrium solve reached fmax.
        contributing: [s] bool, the equilibrium gradient was used: converged and adjoint solved.
        spared: [s] bool, it ended right, and was not differentiated for that.
        unbounded: [s] bool, the adjoint was longer than damping promises, and was not used.
        residual: [s] max|F_free| at X*, eV/Angstrom; NaN where not solved.
        adjoint_residual: [s] relative; NaN where not solved.
        adjoint: [n, 3] u, a warm start for the next visit; zero where not solved.
        evaluations: [s] force evaluations without gradient.
        vjps: [s] backwards; of the adjoint's most share one forward.
        handoff: [n, 3] X_K, Angstrom.
        positions: [n, 3] X*, Angstrom (X_K where not solved).
        removed: [s] largest force on an atom that was taken out at X* as net force or torque,
            eV/Angstrom; NaN where not solved.
        shift: [s] rigid shift that was taken out of Delta Q at X* (X_K where not solved), Angstrom.
    """

    loss: float
    guided: Tensor
    relaxed: Tensor
    cause: Tensor
    converged: Tensor
    contributing: Tensor
    spared: Tensor
    unbounded: Tensor
    residual: Tensor
    adjoint_residual: Tensor
    adjoint: Tensor
    evaluations: Tensor
    vjps: Tensor
    handoff: Tensor
    positions: Tensor
    removed: Tensor
    shift: Tensor

    @property
    def diverged(self) -> Tensor:
        """[s] bool, it is nowhere, and contributes nothing."""
        return has_diverged(self.cause)

    @property
    def unsolved(self) -> Tensor:
        """[s] bool, the adjoint was asked for, and was not solved to its tolerance."""
        return self.converged & ~(self.spared | self.contributing | self.unbounded)


def unsolved(operator: Operator, positions: Tensor, target: Tensor) -> SignalReport:
    """The report of structures at positions X_K [n, 3] from which no equilibrium is sought."""
    distance = delta_q(positions, target, operator.structures, operator.pin)
    unknown = torch.full_like(distance, torch.nan)
    none = torch.zeros_like(distance, dtype=torch.bool)
    return SignalReport(
        loss=0.0,
        guided=distance,
        relaxed=unknown,
        cause=none.to(torch.int8),
        converged=none,
        contributing=none,
        spared=none,
        unbounded=none,
        residual=unknown,
        adjoint_residual=unknown,
        adjoint=torch.zeros_like(positions),
        evaluations=none.long(),
        vjps=none.long(),
        handoff=positions,
        positions=positions,
        removed=unknown,
        shift=rigid_shift(positions, target, operator.structures, operator.pin),
    )


class Signal(Protocol):
    """A gradient to train with: settings alone, a frozen dataclass."""

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """Add the gradient for one batch to the ``.grad`` of what the operator holds.

        Args:
            operator: G with its context frozen at ``start``.
            start: [n, 3] X_0, Angstrom.
            target: [n, 3] X_gt, Angstrom.
            guess: [n, 3] adjoint of an earlier visit, to start the adjoint solve from.
        """
        ...


SIGNALS: Registry[Signal] = Registry("training signal")


def make_signal(name: str, **settings: Any) -> Signal:
    """The signal of that name with those of the settings that it has.

    One set of settings serves for all signals, so that they can be compared by their name alone.

    Raises:
        ValueError: no such signal, or a setting that no registered signal has.
    """
    kind = SIGNALS[name]
    own = _settings_of(kind)
    known = own.union(*(_settings_of(SIGNALS[each]) for each in SIGNALS))
    if unknown := settings.keys() - known:
        raise ValueError(
            f"unknown settings {', '.join(sorted(unknown))} of the signal {name}; there are "
            + ", ".join(sorted(known))
        )
    return kind(**{key: value for key, value in settings.items() if key in own})


def _settings_of(signal: Any) -> set[str]:
    return {each.name for each in fields(signal)}
