"""GMRES (Saad and Schultz 1986), batched: J_G needs to be neither contracting nor symmetric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.adjoints.base import (
    ADJOINTS,
    AdjointSolution,
    Iterative,
    judged,
    norms,
    system,
)
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_sum, to_device, to_host


@ADJOINTS.register("gmres")
@dataclass(frozen=True)
class GMRES(Iterative):
    """The default: it solves every system that is not singular.

    Attributes:
        restart: Krylov vectors kept before a restart.
    """

    restart: int = 50

    @torch.no_grad()
    def __call__(
        self, operator: Operator, positions: Tensor, g: Tensor, guess: Tensor | None = None
    ) -> AdjointSolution:
        """As ``Adjoint``. A structure whose guess is zero spends no VJP on it; one whose guess is
        worse than zero drops it.
        """
        s = operator.structures
        g = operator.project(g, positions)
        u = torch.zeros_like(g) if guess is None else operator.project(guess, positions)
        scale, begun = norms(operator, g), norms(operator, u)
        length, first = to_host(scale, begun)
        vjps = torch.zeros(s.count, dtype=torch.long)  # this and all bookkeeping on the host
        residual = (length != 0).double()  # of u = 0
        # Where the residual is to be measured: at first where there is a guess, later after a restart.
        measured = (first > 0) & first.isfinite() & (length > 0)
        if bool(((first != 0) & ~measured).any()):  # a guess that is not finite, or of nothing
            u = torch.where(to_device(measured, g.device)[s.batch, None], u, 0.0)
        trial = True
        open_ = length > 0
        while bool(open_.any()) and int(vjps[open_].max()) < self.max_vjps:
            r = g.clone()
            if bool(measured.any()):
                part, rows = operator.select(measured), measured.nonzero().squeeze(-1)
                atoms = s.atoms_of(measured)
                error = g[atoms] - system(part, positions[atoms], u[atoms], self.damping)
                (now,) = to_host(norms(part, error))
                now = now / length[rows]
                vjps[rows] += 1
                worse = trial & ~(now <= 1.0)  # a guess, or NaN
                if bool(worse.any()):
                    keep = to_device(~worse, g.device)[part.structures.batch, None]
                    u[atoms] = torch.where(keep, u[atoms], 0.0)
                    error = torch.where(keep, error, g[atoms])
                r[atoms], residual[rows] = error, torch.where(worse, 1.0, now)
            trial = False
            # NaN compares false: a structure with a poisoned residual is not open any more.
            open_ = open_ & (residual > self.tol) & (vjps < self.max_vjps)
            if not bool(open_.any()):
                break
            rows, atoms = open_.nonzero().squeeze(-1), s.atoms_of(open_)
            size = min(self.restart, self.max_vjps - int(vjps[rows].max()))
            cycle = _Cycle.begin(
                operator.select(open_), positions[atoms], r[atoms], self.damping, size
            )
            du, spent, estimate, exhausted = cycle.run(self.tol * length[rows])
            u[atoms] += du
            vjps[rows] += spent
            # Where the space is exhausted and hardly anything is solved, the matrix is singular on it,
            # and the same space would come out again.
            open_[rows] = ~(exhausted & (estimate > 0.5 * residual[rows] * length[rows]))
            residual[rows] = estimate / length[rows]
            # One VJP goes to the true residual.
            open_ = open_ & (residual > self.tol) & (vjps < self.max_vjps - 1)
            measured = open_
        return judged(operator, u, scale, residual, vjps, self.tol, self.damping)


@dataclass
class _Cycle:
    """One GMRES cycle on the structures that are still open: Arnoldi with Givens rotations.

    All structures are rotated at once: ``rotation`` is the product of a structure's rotations so far,
    which makes its Hessenberg matrix the upper triangular ``triangle``, and whose first column gives
    the residual of the least-squares problem for free.

    Attributes:
        operator, positions, damping: the system.
        basis: [j + 1, n, 3] orthonormal in each structure.
        triangle: [s, size, size], double.
        rotation: [s, size + 1, size + 1], double.
        beta: [s] norm of the residual at the start, double.
        size: most vectors.
    """

    operator: Operator
    positions: Tensor
    damping: float
    basis: Tensor
    triangle: Tensor
    rotation: Tensor
    beta: Tensor
    size: int

    @classmethod
    def begin(
        cls, operator: Operator, positions: Tensor, r: Tensor, damping: float, size: int
    ) -> _Cycle:
        """From the residual r [n, 3]."""
        s = operator.structures
        beta = norms(operator, r)
        unit = torch.eye(size + 1, dtype=torch.float64, device=r.device)
        return cls(
            operator=operator,
            positions=positions,
            damping=damping,
            basis=(r / beta.clamp_min(torch.finfo(r.dtype).tiny)[s.batch, None])[None],
            triangle=unit.new_zeros(s.count, size, size),
            rotation=unit.expand(s.count, -1, -1).clone(),
            beta=beta.double(),
            size=size,
        )

    def run(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Until residuals are below ``target`` [s], on the host.

        Returns:
            The correction [n, 3]; and, on the host, VJPs, residuals and the mask of exhausted spaces [s].
        """
        solution = torch.zeros_like(self.positions)
        spent, estimate = (
            torch.zeros(len(target), dtype=torch.long),
            torch.zeros(len(target), dtype=torch.float64),
        )
        which, atoms = (
            torch.arange(len(target)),
            torch.arange(len(solution), device=solution.device),
        )
        exhausted = torch.zeros(len(target), dtype=torch.bool)
        for j in range(self.size):
            left, stuck = to_host(*self._extend(j))
            done = ~(left > target) | (stuck > 0)
            exhausted[which] = stuck > 0
            if j == self.size - 1:
                done = torch.ones_like(done)
            spent[which] += 1
            if bool(done.any()):
                keep = self.operator.structures.atoms_of(done)
                solution[atoms[keep]] = self._solution(j + 1)[keep]
                estimate[which[done]] = left[done]
                going = ~done
                if not bool(going.any()):
                    break
                rest = self.operator.structures.atoms_of(going)
                self._select(going, rest)
                which, atoms = which[going], atoms[rest]
                target = target[going]
        return solution, spent, estimate, exhausted

    def _extend(self, j: int) -> tuple[Tensor, Tensor]:
        """One more vector: residual norms [s], and the mask [s] of spaces that cannot grow any more.

        They hold the solution, or the matrix is singular on them and the residual stays.
        """
        s = self.operator.structures
        w = system(self.operator, self.positions, self.basis[-1], self.damping)
        length = norms(self.operator, w).double()
        column = torch.zeros(s.count, self.size + 1, dtype=torch.float64, device=w.device)
        for _ in range(2):  # classical Gram-Schmidt twice is as orthogonal as can be
            h = segment_sum((self.basis * w).sum(-1).T, s.batch, s.count)
            w = w - combined(h[s.batch], self.basis)
            column[:, : j + 1] += h
        rest = norms(self.operator, w)
        # What is left of A v after that is rounding.
        small = 10 * torch.finfo(w.dtype).eps * length
        grows = rest > small
        column[:, j + 1] = torch.where(grows, rest, 0.0)
        self.basis = torch.cat(
            [self.basis, (w / rest.clamp_min(torch.finfo(w.dtype).tiny)[s.batch, None])[None]]
        )

        column = (self.rotation @ column[..., None]).squeeze(-1)
        a, b = column[:, j], column[:, j + 1]
        radius = torch.hypot(a, b)
        singular = radius <= small
        cosine = torch.where(singular, 1.0, a / radius)[:, None]
        sine = torch.where(singular, 0.0, b / radius)[:, None]
        self.triangle[:, : j + 1, j] = column[:, : j + 1]
        self.triangle[:, j, j] = torch.where(singular, torch.inf, radius)
        upper, lower = self.rotation[:, j].clone(), self.rotation[:, j + 1].clone()
        self.rotation[:, j] = cosine * upper + sine * lower
        self.rotation[:, j + 1] = cosine * lower - sine * upper
        left = torch.where(singular, self.rotation[:, j, 0], self.rotation[:, j + 1, 0])
        return (self.beta * left).abs(), singular | ~grows

    def _solution(self, m: int) -> Tensor:
        """The best correction [n, 3] in the space of the first m vectors."""
        right = self.beta[:, None, None] * self.rotation[:, :m, :1]
        # A singular column has an infinite diagonal, and so the coefficient zero.
        y = torch.linalg.solve_triangular(self.triangle[:, :m, :m], right, upper=True)
        y = torch.where(y.isfinite(), y, 0.0)  # a poisoned structure stays where it is
        y = y.squeeze(-1).to(self.basis.dtype)[self.operator.structures.batch]
        return combined(y, self.basis[:m])

    def _select(self, going: Tensor, atoms: Tensor) -> None:
        """Go on with the structures where the mask [s] holds, whose atoms are ``atoms`` [m]."""
        rows = to_device(going.nonzero().squeeze(-1), atoms.device)
        self.operator = self.operator.select(going)
        self.positions, self.basis = self.positions[atoms], self.basis[:, atoms]
        self.triangle, self.rotation = self.triangle[rows], self.rotation[rows]
        self.beta = self.beta[rows]
