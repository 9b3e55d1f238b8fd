"""Anderson acceleration of X <- G(X) (Walker and Ni 2011, type II), batched and safeguarded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_norm, segment_products
from fairchem_gdeq.relax.solvers.base import SOLVERS, SolverState, limit, per_atom, per_structure


@dataclass(frozen=True)
class AndersonState(SolverState):
    """Of each structure.

    Attributes:
        dx, dr: [m, n, 3] differences of iterates and of residuals, the oldest first; zero where a
            structure has none.
        positions, residuals: [n, 3] of the iterate before.
        smallest: [s] norm of the smallest residual since the last restart, infinite at first.
        length: [s] differences in its own window.
    """

    dx: Tensor = per_atom(history=True)
    dr: Tensor = per_atom(history=True)
    positions: Tensor = per_atom()
    residuals: Tensor = per_atom()
    smallest: Tensor = per_structure()
    length: Tensor = per_structure()


@SOLVERS.register("anderson")
@dataclass(frozen=True)
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

    def start(self, operator: Operator, positions: Tensor) -> AndersonState:
        """Empty windows."""
        nothing = positions.new_zeros(0, *positions.shape)
        unknown = positions.new_full((operator.structures.count,), torch.inf)
        return AndersonState(
            dx=nothing,
            dr=nothing,
            positions=positions,
            residuals=torch.zeros_like(positions),
            smallest=unknown,
            length=torch.zeros_like(unknown),
        )

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: AndersonState
    ) -> tuple[Tensor, AndersonState]:
        """The accelerated displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        r = operator.displacement(forces)
        oldest = max(0, len(state.dx) + 1 - self.window)
        dx = torch.cat([state.dx[oldest:], (positions - state.positions)[None]])
        dr = torch.cat([state.dr[oldest:], (r - state.residuals)[None]])

        size = segment_norm(r, batch, count)
        restart = size > self.growth * state.smallest
        # The first difference of a structure is with nothing; a restart forgets all of them.
        empty = restart | state.smallest.isinf()
        length = torch.where(empty, 0.0, (state.length + 1).clamp_max(self.window))
        smallest = torch.where(restart, size, torch.minimum(size, state.smallest))
        # A difference set to zero drops out of the least-squares problem below.
        dx, dr = (torch.where(empty[batch, None], 0.0, each) for each in (dx, dr))

        gamma = self._coefficients(dr, r, length, batch, count)[batch]
        move = self.mixing * r - combined(gamma, dx + self.mixing * dr)
        state = AndersonState(dx, dr, positions, r, smallest, length)
        return limit(move, self.max_step, operator), state

    def _coefficients(
        self, dr: Tensor, r: Tensor, length: Tensor, batch: Tensor, count: int
    ) -> Tensor:
        """gamma [s, m] of min |r - sum_j gamma_j dR_j|^2 + ridge, per structure."""
        m = len(dr)
        products = segment_products(dr, torch.cat([dr, r[None]]), batch, count)
        gram, right = products[:, :, :m], products[:, :, m:]
        scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / length.clamp_min(1)
        floor = torch.finfo(r.dtype).tiny ** 0.5
        eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
        system = gram + (self.ridge * scale + floor)[:, None, None] * eye
        # Its success is not asked for, which would wait: where it fails, the step is a plain one.
        factor, failed = torch.linalg.cholesky_ex(system)
        gamma = torch.cholesky_solve(right, factor).squeeze(-1)
        return torch.where((failed > 0)[:, None], 0.0, gamma).to(r.dtype)
