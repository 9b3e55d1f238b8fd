"""L-BFGS (Nocedal 1980), batched: every structure has its own curvature and step length."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_dot
from fairchem_gdeq.relax.solvers import limit


@dataclass
class Pair:
    """One secant pair: displacement s and gradient change y [n, 3], and 1 / (s . y) [s]."""

    s: Tensor
    y: Tensor
    rho: Tensor


@dataclass
class LBFGS:
    """Without a line search, as ASE's: one force evaluation a step.

    A pair with non-positive curvature s . y, which a direct force field or a saddle can produce, is
    left out for that structure, so that the proposed direction stays downhill.

    Attributes:
        memory: pairs kept.
        stiffness: first guess of the Hessian's diagonal, eV/Angstrom^2.
        max_step: longest displacement of one atom, Angstrom.
    """

    memory: int = 30
    stiffness: float = 70.0
    max_step: float = 0.2

    def start(self, operator: Operator, positions: Tensor) -> None:
        """Forget all pairs."""
        self._pairs: deque[Pair] = deque(maxlen=self.memory)
        self._last: tuple[Tensor, Tensor] | None = None

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The limited quasi-Newton displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        if self._last is not None:
            s = positions - self._last[0]
            y = self._last[1] - forces
            curvature = segment_dot(s, y, batch, count)
            lengths = (segment_dot(s, s, batch, count) * segment_dot(y, y, batch, count)).sqrt()
            usable = curvature > 1e-8 * lengths
            rho = torch.where(usable, 1.0 / curvature, torch.zeros_like(curvature))
            self._pairs.append(Pair(s, y, rho))
        self._last = (positions, forces)
        return limit(self.inverse_hessian(forces, batch, count), self.max_step, operator)

    def inverse_hessian(self, vector: Tensor, batch: Tensor, count: int) -> Tensor:
        """The secant estimate of (-dF/dX)^-1 applied to an atom vector field [n, 3]."""
        q = vector
        coefficients = []
        for pair in reversed(self._pairs):
            a = pair.rho * segment_dot(pair.s, q, batch, count)
            q = q - a[batch, None] * pair.y
            coefficients.append(a)
        q = q / self.stiffness
        for pair, a in zip(self._pairs, reversed(coefficients), strict=True):
            b = pair.rho * segment_dot(pair.y, q, batch, count)
            q = q + (a - b)[batch, None] * pair.s
        return q

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' pairs."""
        for pair in self._pairs:
            pair.s, pair.y, pair.rho = pair.s[atoms], pair.y[atoms], pair.rho[structures]
        if self._last is not None:
            self._last = (self._last[0][atoms], self._last[1][atoms])
