"""Anderson acceleration of X <- G(X) (Walker and Ni 2011, type II), batched and safeguarded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_dot, segment_norm
from fairchem_gdeq.relax.solvers import limit


@dataclass
class Anderson:
    """Windowed, regularised, restarted where it goes wrong; the paper's choice for Phase 2.

    With residuals r = G(X) - X, the step is beta r - sum_j gamma_j (dX_j + beta dR_j), where gamma
    solves the least-squares problem min |r - sum_j gamma_j dR_j| of each structure by itself.

    Attributes:
        window: earlier iterates that are combined.
        mixing: beta.
        ridge: Tikhonov term, relative to the mean squared length of the columns dR_j.
        growth: a structure whose residual exceeds this many times its smallest one since the last
            restart forgets its window and takes a plain step.
        max_step: longest displacement of one atom, Angstrom.
    """

    window: int = 8
    mixing: float = 1.0
    ridge: float = 1e-8
    growth: float = 2.0
    max_step: float = 0.2

    def start(self, operator: Operator, positions: Tensor) -> None:
        """Empty windows."""
        self._differences: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.window)
        self._last: tuple[Tensor, Tensor] | None = None
        self._smallest = positions.new_full((operator.structures.count,), torch.inf)

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The accelerated displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        r = operator.step(forces)
        if self._last is not None:
            self._differences.append((positions - self._last[0], r - self._last[1]))
        self._last = (positions, r)

        size = segment_norm(r, batch, count)
        restart = size > self.growth * self._smallest
        self._smallest = torch.where(restart, size, torch.minimum(size, self._smallest))
        keep = (~restart).to(r.dtype)[batch, None]
        # A difference set to zero drops out of the least-squares problem below.
        pairs = [(dx * keep, dr * keep) for dx, dr in self._differences]
        self._differences = deque(pairs, maxlen=self.window)

        move = self.mixing * r
        if pairs:
            gamma = self._coefficients([dr for _, dr in pairs], r, batch, count)
            for j, (dx, dr) in enumerate(pairs):
                move = move - gamma[batch, j, None] * (dx + self.mixing * dr)
        return limit(move, self.max_step, operator)

    def _coefficients(self, columns: list[Tensor], r: Tensor, batch: Tensor, count: int) -> Tensor:
        """gamma [s, m] of min |r - sum_j gamma_j dR_j|^2 + ridge, per structure."""
        m = len(columns)
        gram = torch.stack(
            [segment_dot(a, b, batch, count) for a in columns for b in columns], dim=-1
        ).view(count, m, m)
        right = torch.stack([segment_dot(a, r, batch, count) for a in columns], dim=-1)
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        floor = torch.finfo(r.dtype).tiny ** 0.5
        eye = torch.eye(m, dtype=r.dtype, device=r.device)
        system = gram + (self.ridge * scale + floor)[:, None, None] * eye
        # In double: the Gram matrix squares the condition number.
        gamma: Tensor = torch.linalg.lstsq(system.double(), right.double()[..., None]).solution
        return gamma.squeeze(-1).to(r.dtype)

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' windows."""
        pairs = [(dx[atoms], dr[atoms]) for dx, dr in self._differences]
        self._differences = deque(pairs, maxlen=self.window)
        if self._last is not None:
            self._last = (self._last[0][atoms], self._last[1][atoms])
        self._smallest = self._smallest[structures]
