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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import combined, segment_norm, segment_sum, to_device, to_host


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


def _norms(operator: Operator, vector: Tensor) -> Tensor:
    return segment_norm(vector, operator.structures.batch, operator.structures.count)


def _system(operator: Operator, positions: Tensor, u: Tensor, damping: float) -> Tensor:
    """((1 + mu) I - J_G^T) u [n, 3] in the space of the unknowns."""
    return (1.0 + damping) * u - operator.project(operator.vjp(positions, u), positions)


def _judged(
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
    length = _norms(operator, u)
    unbounded = mu * length > scale
    converged = (residual <= tol) & ~unbounded & length.isfinite()
    return AdjointSolution(u, converged, unbounded, residual, vjps)


@torch.no_grad()
def gmres(
    operator: Operator,
    positions: Tensor,
    g: Tensor,
    tol: float = 1e-3,
    max_vjps: int = 100,
    guess: Tensor | None = None,
    damping: float = 0.0,
    restart: int = 50,
) -> AdjointSolution:
    """Batched GMRES (Saad and Schultz 1986); J_G needs to be neither contracting nor symmetric.

    Args:
        operator: G; its structures define the blocks.
        positions: [n, 3] X*, Angstrom.
        g: [n, 3] dL/dX*.
        tol: wanted relative residual.
        max_vjps: most VJPs per structure.
        guess: [n, 3] first u (warm start), zero if None. A structure whose guess is zero spends no
            VJP on it; a guess worse than zero is dropped.
        damping: mu.
        restart: Krylov vectors kept before a restart.
    """
    s = operator.structures
    g = operator.project(g, positions)
    u = torch.zeros_like(g) if guess is None else operator.project(guess, positions)
    scale, begun = _norms(operator, g), _norms(operator, u)
    length, first = to_host(scale, begun)
    vjps = torch.zeros(s.count, dtype=torch.long)  # this and all bookkeeping on the host
    residual = (length != 0).double()  # of u = 0
    # Where the residual is to be measured: at first where there is a guess, later after a restart.
    measured = (first > 0) & first.isfinite() & (length > 0)
    if bool(((first != 0) & ~measured).any()):  # a guess that is not finite, or of nothing
        u = torch.where(to_device(measured, g.device)[s.batch, None], u, 0.0)
    trial = True
    open_ = length > 0
    while bool(open_.any()) and int(vjps[open_].max()) < max_vjps:
        r = g.clone()
        if bool(measured.any()):
            part, rows = operator.select(measured), measured.nonzero().squeeze(-1)
            atoms = s.atoms_of(measured)
            error = g[atoms] - _system(part, positions[atoms], u[atoms], damping)
            (now,) = to_host(_norms(part, error))
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
        open_ = open_ & (residual > tol) & (vjps < max_vjps)
        if not bool(open_.any()):
            break
        rows, atoms = open_.nonzero().squeeze(-1), s.atoms_of(open_)
        size = min(restart, max_vjps - int(vjps[rows].max()))
        cycle = _Cycle.begin(operator.select(open_), positions[atoms], r[atoms], damping, size)
        du, spent, estimate, exhausted = cycle.run(tol * length[rows])
        u[atoms] += du
        vjps[rows] += spent
        # Where the space is exhausted and hardly anything is solved, the matrix is singular on it,
        # and the same space would come out again.
        open_[rows] = ~(exhausted & (estimate > 0.5 * residual[rows] * length[rows]))
        residual[rows] = estimate / length[rows]
        open_ = open_ & (residual > tol) & (vjps < max_vjps - 1)  # one goes to the true residual
        measured = open_
    return _judged(operator, u, scale, residual, vjps, tol, damping)


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
        beta = _norms(operator, r)
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
        w = _system(self.operator, self.positions, self.basis[-1], self.damping)
        length = _norms(self.operator, w).double()
        column = torch.zeros(s.count, self.size + 1, dtype=torch.float64, device=w.device)
        for _ in range(2):  # classical Gram-Schmidt twice is as orthogonal as can be
            h = segment_sum((self.basis * w).sum(-1).T, s.batch, s.count)
            w = w - combined(h[s.batch], self.basis)
            column[:, : j + 1] += h
        rest = _norms(self.operator, w)
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


@torch.no_grad()
def neumann(
    operator: Operator,
    positions: Tensor,
    g: Tensor,
    tol: float = 1e-3,
    max_vjps: int = 100,
    guess: Tensor | None = None,
    damping: float = 0.0,
) -> AdjointSolution:
    """u <- (g + J_G^T u) / (1 + mu): the series of eq. 4, discounted.

    Converges only where the spectral radius of J_G is below 1 + mu.
    """
    s = operator.structures
    g = operator.project(g, positions)
    u = g / (1.0 + damping) if guess is None else operator.project(guess, positions)
    scale = _norms(operator, g)
    (length,) = to_host(scale)
    residual = torch.where(length == 0, 0.0, torch.inf)
    vjps = torch.zeros(s.count, dtype=torch.long)
    which = (length > 0).nonzero().squeeze(-1)
    active, atoms = operator.select(length > 0), s.atoms_of(length > 0)
    for _ in range(max_vjps):
        if len(which) == 0:
            break
        error = g[atoms] - _system(active, positions[atoms], u[atoms], damping)
        (now,) = to_host(_norms(active, error))
        vjps[which] += 1
        residual[which] = now / length[which]
        # The residual just measured is that of the u before this update: keep that one.
        going = (residual[which] > tol) & torch.isfinite(now)
        if not bool(going.all()):
            keep = active.structures.atoms_of(going)
            active, which = active.select(going), which[going]
            atoms, error = atoms[keep], error[keep]
        u[atoms] += error / (1.0 + damping)
    return _judged(operator, u, scale, residual, vjps, tol, damping)


@torch.no_grad()
def identity(
    operator: Operator,
    positions: Tensor,
    g: Tensor,
    tol: float = 1e-3,
    max_vjps: int = 100,
    guess: Tensor | None = None,
    damping: float = 0.0,
) -> AdjointSolution:
    """u = g, whatever the damping: Jacobian-free backpropagation (Fung et al. 2022), no VJP and no
    promise.

    Its residual is not measured (NaN); it counts as converged because nothing was to converge.
    """
    g = operator.project(g, positions)
    none = torch.zeros(operator.structures.count, dtype=torch.bool, device=g.device)
    return AdjointSolution(
        u=g,
        converged=~none,
        unbounded=none,
        residual=torch.full_like(none, torch.nan, dtype=g.dtype),
        vjps=none.long(),
    )


ADJOINTS: dict[str, Callable[..., AdjointSolution]] = {
    "gmres": gmres,
    "neumann": neumann,
    "identity": identity,
}
