"""Anderson acceleration of X <- G(X) (Walker and Ni 2011, type II), batched and safeguarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_norm, segment_products
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
        self._dx = self._dr = positions.new_zeros(0, *positions.shape)  # [m, n, 3], oldest first
        self._last = (positions, torch.zeros_like(positions))
        self._smallest = positions.new_full((operator.structures.count,), torch.inf)
        self._length = torch.zeros_like(self._smallest)  # of each structure's own window
        self._begun = False  # whether any structure has an iterate to take a difference with

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The accelerated displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        r = operator.step(forces)
        if self._begun:
            oldest = max(0, len(self._dx) + 1 - self.window)
            self._dx = torch.cat([self._dx[oldest:], (positions - self._last[0])[None]])
            self._dr = torch.cat([self._dr[oldest:], (r - self._last[1])[None]])
        self._begun, self._last = True, (positions, r)

        size = segment_norm(r, batch, count)
        restart = size > self.growth * self._smallest
        # The first difference of a structure is with nothing; a restart forgets all of them.
        empty = restart | self._smallest.isinf()
        self._length = torch.where(empty, 0.0, (self._length + 1).clamp_max(self.window))
        self._smallest = torch.where(restart, size, torch.minimum(size, self._smallest))
        # A difference set to zero drops out of the least-squares problem below.
        self._dx, self._dr = (
            torch.where(empty[batch, None], 0.0, each) for each in (self._dx, self._dr)
        )

        move = self.mixing * r
        if len(self._dr):
            gamma = self._coefficients(r, batch, count)[batch]
            change = self._dx + self.mixing * self._dr
            move = move - combined(gamma, change)
        return limit(move, self.max_step, operator)

    def _coefficients(self, r: Tensor, batch: Tensor, count: int) -> Tensor:
        """gamma [s, m] of min |r - sum_j gamma_j dR_j|^2 + ridge, per structure."""
        m = len(self._dr)
        products = segment_products(self._dr, torch.cat([self._dr, r[None]]), batch, count)
        gram, right = products[:, :, :m], products[:, :, m:]
        scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / self._length.clamp_min(1)
        floor = torch.finfo(r.dtype).tiny ** 0.5
        eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
        system = gram + (self.ridge * scale + floor)[:, None, None] * eye
        # Its success is not asked for, which would wait: where it fails, the step is a plain one.
        factor, failed = torch.linalg.cholesky_ex(system)
        gamma = torch.cholesky_solve(right, factor).squeeze(-1)
        return torch.where((failed > 0)[:, None], 0.0, gamma).to(r.dtype)

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' windows."""
        self._dx, self._dr = self._dx[:, atoms], self._dr[:, atoms]
        self._last = (self._last[0][atoms], self._last[1][atoms])
        self._smallest, self._length = self._smallest[structures], self._length[structures]

    def join(self, others: Sequence[Anderson]) -> None:
        """Append the others' windows, the latest differences beside the latest."""
        parts = [self, *others]
        longest = max(len(p._dx) for p in parts)
        self._dx, self._dr = (
            torch.cat([pad(w, (0, 0, 0, 0, longest - len(w), 0)) for w in windows], dim=1)
            for windows in zip(*((p._dx, p._dr) for p in parts), strict=True)
        )
        self._last = (
            torch.cat([p._last[0] for p in parts]),
            torch.cat([p._last[1] for p in parts]),
        )
        self._smallest = torch.cat([p._smallest for p in parts])
        self._length = torch.cat([p._length for p in parts])
        self._begun = any(p._begun for p in parts)
