"""Anderson acceleration of X <- G(X) (Walker and Ni 2011, type II), batched and safeguarded."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
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
        self._last = (positions, torch.zeros_like(positions))
        self._smallest = positions.new_full((operator.structures.count,), torch.inf)
        self._length = torch.zeros_like(self._smallest)  # of each structure's own window

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The accelerated displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        r = operator.step(forces)
        first = self._smallest.isinf()
        if not bool(first.all()):
            self._differences.append((positions - self._last[0], r - self._last[1]))
        self._last = (positions, r)
        self._length = torch.where(first, 0.0, (self._length + 1).clamp_max(self.window))

        size = segment_norm(r, batch, count)
        restart = size > self.growth * self._smallest
        self._smallest = torch.where(restart, size, torch.minimum(size, self._smallest))
        keep = (~(restart | first)).to(r.dtype)[batch, None]
        # The first difference of a structure is with nothing; a restart forgets all of them. A
        # difference set to zero drops out of the least-squares problem below.
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
        scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / self._length.clamp_min(1)
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
        self._last = (self._last[0][atoms], self._last[1][atoms])
        self._smallest, self._length = self._smallest[structures], self._length[structures]

    def join(self, others: Sequence[Anderson]) -> None:
        """Append the others' windows, the latest differences beside the latest."""
        parts = [self, *others]
        longest = max(len(p._differences) for p in parts)
        columns = zip(*(p._padded(longest) for p in parts), strict=True)
        pairs = [
            (torch.cat([dx for dx, _ in column]), torch.cat([dr for _, dr in column]))
            for column in columns
        ]
        self._differences = deque(pairs, maxlen=self.window)
        self._last = (
            torch.cat([p._last[0] for p in parts]),
            torch.cat([p._last[1] for p in parts]),
        )
        self._smallest = torch.cat([p._smallest for p in parts])
        self._length = torch.cat([p._length for p in parts])

    def _padded(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """The differences after as many of zero as make ``length``."""
        zero = torch.zeros_like(self._last[0])
        return [(zero, zero)] * (length - len(self._differences)) + list(self._differences)
