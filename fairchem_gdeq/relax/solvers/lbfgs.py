"""L-BFGS (Nocedal 1980), batched: every structure has its own curvature and step length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_products, segment_sum
from fairchem_gdeq.relax.solvers.base import SOLVERS, SolverState, limit, per_atom, per_structure
from fairchem_gdeq.relax.solvers.bonds import coupling, stretches, without_stretches


@dataclass(frozen=True)
class LBFGSState(SolverState):
    """The latest m secant pairs of every structure, scaled so that s . y = 1, the oldest first.

    A pair that a structure has not is zero: whatever the others have, it changes nothing.

    The first guess of the Hessian is ``diagonal`` times P, the identity but for bonds (``bonds.py``).

    Attributes:
        s, y: [m, n, 3] displacements, and gradient changes times P^-1.
        sy, yy: [s, m, m] products s_i . P y_j and y_i . P y_j in each structure, double. Of the
            former only i <= j is ever right, and read.
        diagonal: [s] eV/Angstrom^2.
        stretches, coupling: [b, n, 3] and [s, b, b], what P^-1 is made of.
        positions, forces: [n, 3] of the evaluation before, to take differences with.
    """

    s: Tensor = per_atom(history=True)
    y: Tensor = per_atom(history=True)
    sy: Tensor = per_structure(history=2)
    yy: Tensor = per_structure(history=2)
    diagonal: Tensor = per_structure()
    stretches: Tensor = per_atom(history=True)
    coupling: Tensor = per_structure(history=2)
    positions: Tensor = per_atom()
    forces: Tensor = per_atom()

    def append(
        self, s: Tensor, y: Tensor, change: Tensor, memory: int, batch: Tensor, count: int
    ) -> LBFGSState:
        """With one more pair [n, 3], and without the oldest where that makes too many.

        ``change`` is the gradient's, y times P.
        """
        old = slice(max(0, len(self.s) + 1 - memory), None)
        s, y = torch.cat([self.s[old], s[None]]), torch.cat([self.y[old], y[None]])
        column = segment_products(torch.cat([s, y]), change[None], batch, count).squeeze(-1)
        with_s, with_y = column.chunk(2, dim=-1)
        sy, yy = (pad(each[:, old, old], (0, 1, 0, 1)) for each in (self.sy, self.yy))
        sy[:, :, -1], yy[:, :, -1], yy[:, -1] = with_s, with_y, with_y
        return replace(self, s=s, y=y, sy=sy, yy=yy)

    def softened(self, vectors: Tensor, batch: Tensor, count: int) -> Tensor:
        """P^-1 of an atom vector field [n, 3]."""
        if not len(self.stretches):
            return vectors
        return without_stretches(vectors, self.stretches, self.coupling, batch, count)


@SOLVERS.register("lbfgs")
@dataclass(frozen=True)
class LBFGS:
    """Without a line search, as ASE's: one force evaluation a step.

    A pair with non-positive curvature s . y, which a direct force field or a saddle can produce, is
    left out for that structure, so that the proposed direction stays downhill. The inverse Hessian is
    applied in its compact form (Byrd, Nocedal and Schnabel 1994, eq. 3.1): a few large products
    instead of four small ones for each pair.

    Attributes:
        memory: pairs kept.
        stiffness: first guess of the Hessian's diagonal, eV/Angstrom^2.
        softest: from the first pair on, that guess follows the latest one, y . y / s . y (Nocedal and
            Wright, eq. 7.20), down to this. That takes half of the evaluations of a fixed guess, which
            is ASE's and that of None; some structures end in another basin, as between any two solvers.
        max_step: longest displacement of one atom, Angstrom.
        bonds: how many times stiffer than all else the guess takes the bond of two non-metals; 0 for
            a guess that knows no bonds.
    """

    memory: int = 30
    stiffness: float = 70.0
    softest: float | None = 10.0
    max_step: float = 0.2
    bonds: float = 0.0

    def start(self, operator: Operator, positions: Tensor) -> LBFGSState:
        """No pair yet; bonds are those of these positions."""
        batch, count = operator.structures.batch, operator.structures.count
        vectors = positions.new_zeros(0, *positions.shape)
        products = positions.new_zeros(count, 0, 0, dtype=torch.float64)
        found = stretches(operator.structures, positions) if self.bonds else vectors
        return LBFGSState(
            s=vectors,
            y=vectors,
            sy=products,
            yy=products,
            diagonal=positions.new_full((count,), self.stiffness),
            stretches=found,
            coupling=coupling(found, self.bonds, batch, count) if len(found) else products,
            # As if the last step had not moved: the first pair then has no curvature and is left out.
            positions=positions,
            forces=torch.zeros_like(positions),
        )

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: LBFGSState
    ) -> tuple[Tensor, LBFGSState]:
        """The limited quasi-Newton displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        s, change = positions - state.positions, state.forces - forces
        y = state.softened(change, batch, count)
        products = torch.stack([s * change, s * s, y * change], dim=-1).sum(1)
        curvature, moved, changed = segment_sum(products, batch, count).unbind(-1)
        usable = curvature > 1e-8 * (moved * changed).sqrt()
        scale = torch.where(usable, curvature.rsqrt(), 0.0)[batch, None]
        state = state.append(s * scale, y * scale, change * scale, self.memory, batch, count)
        diagonal = state.diagonal
        if self.softest is not None:
            guess = (changed / curvature).clamp_min(self.softest)
            diagonal = torch.where(usable, guess, diagonal)
        state = replace(state, diagonal=diagonal, positions=positions, forces=forces)
        move = inverse_hessian(state, forces, batch, count)
        return limit(move, self.max_step, operator), state


def inverse_hessian(state: LBFGSState, vector: Tensor, batch: Tensor, count: int) -> Tensor:
    """The secant estimate of (-dF/dX)^-1 applied to an atom vector field [n, 3]."""
    m = len(state.s)
    vectors = torch.cat([state.s, state.y])
    products = segment_products(vectors, vector[None], batch, count)
    q, p = products[:, :m], products[:, m:]
    diagonal = state.sy.diagonal(dim1=-2, dim2=-1)
    upper = state.sy.triu() + torch.diag_embed((diagonal == 0).to(diagonal.dtype))
    flexibility = 1.0 / state.diagonal.double()[:, None, None]
    a = torch.linalg.solve_triangular(upper, q, upper=True)
    b = diagonal[..., None] * a + flexibility * (state.yy @ a - p)
    b = torch.linalg.solve_triangular(upper.mT, b, upper=False)
    weights = torch.cat([b, -flexibility * a], dim=1).to(vector.dtype).squeeze(-1)
    move = state.softened(vector, batch, count) / state.diagonal[batch, None]
    return move + combined(weights[batch], vectors)
