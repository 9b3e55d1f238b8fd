"""L-BFGS (Nocedal 1980), batched: every structure has its own curvature and step length."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_dot
from fairchem_gdeq.relax.solvers import limit


@dataclass
class Pair:
    """One secant pair: displacement s and gradient change y [n, 3], and 1 / (s . y) [s].

    For a structure whose rho is zero there is no pair: whatever its s and y, it changes nothing.
    """

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
        softest: where given, that guess follows the latest pair, y . y / s . y (Nocedal and Wright,
            eq. 7.20), down to this. Fewer evaluations, longer steps: it may end in another basin.
        max_step: longest displacement of one atom, Angstrom.
    """

    memory: int = 30
    stiffness: float = 70.0
    softest: float | None = None
    max_step: float = 0.2

    def start(self, operator: Operator, positions: Tensor) -> None:
        """Forget all pairs."""
        self._pairs: deque[Pair] = deque(maxlen=self.memory)
        self._count = operator.structures.count
        self._diagonal = positions.new_full((self._count,), self.stiffness)
        # As if the last step had not moved: the first pair then has no curvature and is left out.
        self._last = (positions, torch.zeros_like(positions))

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The limited quasi-Newton displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        s = positions - self._last[0]
        y = self._last[1] - forces
        curvature = segment_dot(s, y, batch, count)
        lengths = (segment_dot(s, s, batch, count) * segment_dot(y, y, batch, count)).sqrt()
        usable = curvature > 1e-8 * lengths
        rho = torch.where(usable, 1.0 / curvature, torch.zeros_like(curvature))
        self._pairs.append(Pair(s, y, rho))
        if self.softest is not None:
            guess = (rho * segment_dot(y, y, batch, count)).clamp_min(self.softest)
            self._diagonal = torch.where(usable, guess, self._diagonal)
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
        q = q / self._diagonal[batch, None]
        for pair, a in zip(self._pairs, reversed(coefficients), strict=True):
            b = pair.rho * segment_dot(pair.y, q, batch, count)
            q = q + (a - b)[batch, None] * pair.s
        return q

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' pairs."""
        pairs = [Pair(p.s[atoms], p.y[atoms], p.rho[structures]) for p in self._pairs]
        self._pairs = deque(pairs, maxlen=self.memory)
        self._count = int(structures.sum())
        self._diagonal = self._diagonal[structures]
        self._last = (self._last[0][atoms], self._last[1][atoms])

    def join(self, others: Sequence[LBFGS]) -> None:
        """Append the others' pairs, the latest beside the latest."""
        parts = [self, *others]
        longest = max(len(p._pairs) for p in parts)
        columns = zip(*(p._padded(longest) for p in parts), strict=True)
        pairs = [
            Pair(*(torch.cat(c) for c in zip(*((p.s, p.y, p.rho) for p in column), strict=True)))
            for column in columns
        ]
        self._pairs = deque(pairs, maxlen=self.memory)
        self._count = sum(p._count for p in parts)
        self._diagonal = torch.cat([p._diagonal for p in parts])
        self._last = (
            torch.cat([p._last[0] for p in parts]),
            torch.cat([p._last[1] for p in parts]),
        )

    def _padded(self, length: int) -> list[Pair]:
        """The pairs after as many void ones as make ``length``."""
        nowhere = torch.zeros_like(self._last[0])
        void = Pair(nowhere, nowhere, nowhere.new_zeros(self._count))
        return [void] * (length - len(self._pairs)) + list(self._pairs)
