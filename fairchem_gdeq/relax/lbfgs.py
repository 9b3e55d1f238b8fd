"""L-BFGS (Nocedal 1980), batched: every structure has its own curvature and step length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_products, segment_sum
from fairchem_gdeq.relax.solvers import limit


@dataclass
class Pairs:
    """The latest m secant pairs of every structure, scaled so that s . y = 1.

    A pair that a structure has not is zero: whatever the others have, it changes nothing.

    Attributes:
        s, y: [m, n, 3] displacements and gradient changes, the oldest first.
        sy, yy: [s, m, m] their products s_i . y_j and y_i . y_j in each structure, double. Of the
            former only i <= j is ever right, and read.
    """

    s: Tensor
    y: Tensor
    sy: Tensor
    yy: Tensor

    @classmethod
    def none(cls, positions: Tensor, count: int) -> Pairs:
        """No pair yet."""
        vectors = positions.new_zeros(0, *positions.shape)
        products = positions.new_zeros(count, 0, 0, dtype=torch.float64)
        return cls(vectors, vectors, products, products)

    def append(self, s: Tensor, y: Tensor, memory: int, batch: Tensor, count: int) -> Pairs:
        """With one more pair [n, 3], and without the oldest where that makes too many."""
        old = slice(max(0, len(self.s) + 1 - memory), None)
        s, y = torch.cat([self.s[old], s[None]]), torch.cat([self.y[old], y[None]])
        column = segment_products(torch.cat([s, y]), y[-1:], batch, count).squeeze(-1)
        with_s, with_y = column.chunk(2, dim=-1)
        sy, yy = (pad(each[:, old, old], (0, 1, 0, 1)) for each in (self.sy, self.yy))
        sy[:, :, -1], yy[:, :, -1], yy[:, -1] = with_s, with_y, with_y
        return Pairs(s, y, sy, yy)

    def lengthened(self, m: int) -> Pairs:
        """As many pairs of zero before the others as make ``m``."""
        more = m - len(self.s)
        atoms, products = (0, 0, 0, 0, more, 0), (more, 0, more, 0)
        return Pairs(
            pad(self.s, atoms), pad(self.y, atoms), pad(self.sy, products), pad(self.yy, products)
        )


@dataclass
class LBFGS:
    """Without a line search, as ASE's: one force evaluation a step.

    A pair with non-positive curvature s . y, which a direct force field or a saddle can produce, is
    left out for that structure, so that the proposed direction stays downhill. The inverse Hessian is
    applied in its compact form (Byrd, Nocedal and Schnabel 1994, eq. 3.1): a few large products
    instead of four small ones for each pair.

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
        count = operator.structures.count
        self._pairs = Pairs.none(positions, count)
        self._diagonal = positions.new_full((count,), self.stiffness)
        # As if the last step had not moved: the first pair then has no curvature and is left out.
        self._last = (positions, torch.zeros_like(positions))

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """The limited quasi-Newton displacement [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        s = positions - self._last[0]
        y = self._last[1] - forces
        products = torch.stack([s * y, s * s, y * y], dim=-1).sum(1)
        curvature, moved, changed = segment_sum(products, batch, count).unbind(-1)
        usable = curvature > 1e-8 * (moved * changed).sqrt()
        scale = torch.where(usable, curvature.rsqrt(), 0.0)[batch, None]
        self._pairs = self._pairs.append(s * scale, y * scale, self.memory, batch, count)
        if self.softest is not None:
            guess = (changed / curvature).clamp_min(self.softest)
            self._diagonal = torch.where(usable, guess, self._diagonal)
        self._last = (positions, forces)
        return limit(self.inverse_hessian(forces, batch, count), self.max_step, operator)

    def inverse_hessian(self, vector: Tensor, batch: Tensor, count: int) -> Tensor:
        """The secant estimate of (-dF/dX)^-1 applied to an atom vector field [n, 3]."""
        pairs, m = self._pairs, len(self._pairs.s)
        vectors = torch.cat([pairs.s, pairs.y])
        products = segment_products(vectors, vector[None], batch, count)
        q, p = products[:, :m], products[:, m:]
        diagonal = pairs.sy.diagonal(dim1=-2, dim2=-1)
        upper = pairs.sy.triu() + torch.diag_embed((diagonal == 0).to(diagonal.dtype))
        flexibility = 1.0 / self._diagonal.double()[:, None, None]
        a = torch.linalg.solve_triangular(upper, q, upper=True)
        b = diagonal[..., None] * a + flexibility * (pairs.yy @ a - p)
        b = torch.linalg.solve_triangular(upper.mT, b, upper=False)
        weights = torch.cat([b, -flexibility * a], dim=1).to(vector.dtype).squeeze(-1)
        move = vector / self._diagonal[batch, None]
        return move + combined(weights[batch], vectors)

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' pairs."""
        p = self._pairs
        self._pairs = Pairs(p.s[:, atoms], p.y[:, atoms], p.sy[structures], p.yy[structures])
        self._diagonal = self._diagonal[structures]
        self._last = (self._last[0][atoms], self._last[1][atoms])

    def join(self, others: Sequence[LBFGS]) -> None:
        """Append the others' pairs, the latest beside the latest."""
        parts = [self, *others]
        longest = max(len(part._pairs.s) for part in parts)
        pairs = [part._pairs.lengthened(longest) for part in parts]
        self._pairs = Pairs(
            s=torch.cat([p.s for p in pairs], dim=1),
            y=torch.cat([p.y for p in pairs], dim=1),
            sy=torch.cat([p.sy for p in pairs]),
            yy=torch.cat([p.yy for p in pairs]),
        )
        self._diagonal = torch.cat([part._diagonal for part in parts])
        self._last = (
            torch.cat([part._last[0] for part in parts]),
            torch.cat([part._last[1] for part in parts]),
        )
