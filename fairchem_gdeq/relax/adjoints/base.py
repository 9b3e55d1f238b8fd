"""Phase 3 of Algorithm 1: the adjoint system of eq. 4, u = g + J_G(X*)^T u, with VJPs only.

Each structure is a system of its own; all share the VJP calls. A structure whose system is solved
leaves the batch.

``damping`` mu >= 0 solves ((1 + mu) I - J_G^T) u = g instead, which is BPTT's sum over the past
steps discounted by 1 / (1 + mu) per step: a gradient that forgets after about 1/mu steps. Where J_G
has an eigenvalue next to 1 (a mode with hardly any stiffness, real or an artefact of the model) the
exact u is that mode and nothing else. At a minimum no mode is amplified by more than 1/mu then. Beside
a saddle it can be: a mode of curvature h has the eigenvalue alpha h + mu, which vanishes at
h = -mu / alpha. So a solution longer than |g| / mu is not a discounted sum of anything; it counts as
``unbounded`` and not as converged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.registry import Registry
from fairchem_gdeq.relax.segments import segment_norm, to_device
from fairchem_gdeq.relax.settings import require_not_negative


@dataclass(frozen=True)
class AdjointSolution:
    """u per structure, and how far it can be trusted.

    Attributes:
        u: [n, 3]; zero on fixed atoms.
        converged: [s] bool, relative residual below the tolerance, and not ``unbounded``.
        unbounded: [s] bool, there is damping, and u is longer than |g| / mu.
        residual: [s] |g - ((1 + mu) I - J_G)^T u| / |g|; 0 where g = 0.
        vjps: [s] VJPs spent on each structure.
    """

    u: Tensor
    converged: Tensor
    unbounded: Tensor
    residual: Tensor
    vjps: Tensor


def norms(operator: Operator, vector: Tensor) -> Tensor:
    """Length [s] of a vector field [n, 3] in each structure."""
    return segment_norm(vector, operator.structures.batch, operator.structures.count)


def system(operator: Operator, positions: Tensor, u: Tensor, damping: float) -> Tensor:
    """((1 + mu) I - J_G^T) u [n, 3] in the space of the unknowns."""
    return (1.0 + damping) * u - operator.project(operator.vjp(positions, u), positions)


def judged(
    operator: Operator,
    u: Tensor,
    scale: Tensor,
    residual: Tensor,
    vjps: Tensor,
    tol: float,
    mu: float,
) -> AdjointSolution:
    """The solution with |g| = ``scale`` [s]; residual and VJPs [s] come from the host."""
    residual, vjps = (to_device(each, u.device) for each in (residual.to(scale.dtype), vjps))
    length = norms(operator, u)
    unbounded = mu * length > scale
    converged = (residual <= tol) & ~unbounded & length.isfinite()
    return AdjointSolution(u, converged, unbounded, residual, vjps)


class Adjoint(Protocol):
    """A solver of eq. 4: settings alone, a frozen dataclass."""

    def __call__(
        self, operator: Operator, positions: Tensor, g: Tensor, guess: Tensor | None = None
    ) -> AdjointSolution:
        """u [n, 3] for every structure.

        Args:
            operator: G; its structures define the blocks. The signals give a ``Linearised`` one, whose
                VJPs at ``positions`` cost a backward alone.
            positions: [n, 3] X*, Angstrom.
            g: [n, 3] dL/dX*.
            guess: [n, 3] first u (warm start), or None.
        """
        ...


ADJOINTS: Registry[Adjoint] = Registry("adjoint")


@dataclass(frozen=True)
class Iterative:
    """Settings of the adjoints that solve the system step by step.

    By default loose and damped, as in all configs: in the exact gradient, a soft mode outweighs the
    rest. ``damping=0.0`` and a small ``tol`` give that one.

    Attributes:
        tol: wanted relative residual.
        max_vjps: most VJPs per structure.
        damping: mu, see the head of this file; 0 is the exact implicit gradient.
    """

    tol: float = 0.05
    max_vjps: int = 60
    damping: float = 0.03

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant.

        Raises:
            ValueError: one is negative; names it.
        """
        require_not_negative(tol=self.tol, max_vjps=self.max_vjps, damping=self.damping)
