"""Phase 3 of Algorithm 1: the adjoint system of eq. 4, u = g + J_G(X*)^T u, with VJPs only.

Each structure is a system of its own; all share the VJP calls. A structure whose system is solved
leaves the batch.

``damping`` mu >= 0 solves ((1 + mu) I - J_G^T) u = g instead, which is BPTT's sum over the past
steps discounted by 1 / (1 + mu) per step: a gradient that forgets after about 1/mu steps. Where J_G
has an eigenvalue next to 1 (a mode with hardly any stiffness, real or an artefact of the model) the
exact u is that mode and nothing else; with damping no mode is amplified by more than 1/mu.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_dot, segment_norm


@dataclass(frozen=True)
class AdjointSolution:
    """u per structure, and how far it can be trusted.

    Attributes:
        u: [n, 3]; zero on fixed atoms.
        converged: [s] bool, relative residual below the tolerance.
        residual: [s] |g - ((1 + mu) I - J_G)^T u| / |g|; 0 where g = 0.
        vjps: [s] VJPs spent on each structure.
    """

    u: Tensor
    converged: Tensor
    residual: Tensor
    vjps: Tensor


def _norms(operator: Operator, vector: Tensor) -> Tensor:
    return segment_norm(vector, operator.structures.batch, operator.structures.count)


def _system(operator: Operator, positions: Tensor, u: Tensor, damping: float) -> Tensor:
    """((1 + mu) I - J_G^T) u [n, 3] in the space of the unknowns."""
    return (1.0 + damping) * u - operator.project(operator.vjp(positions, u))


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
        guess: [n, 3] first u (warm start), zero if None.
        damping: mu.
        restart: Krylov vectors kept before a restart.
    """
    count = operator.structures.count
    g = operator.project(g)
    u = torch.zeros_like(g) if guess is None else operator.project(guess)
    scale = _norms(operator, g)
    zero = scale == 0
    vjps = torch.zeros(count, dtype=torch.long, device=g.device)
    residual = torch.where(zero, torch.zeros_like(scale), torch.ones_like(scale))
    open_ = ~zero
    u[zero[operator.structures.batch]] = 0.0

    first = guess is None
    while bool(open_.any()):
        which = open_.nonzero().squeeze(-1)
        if int(vjps[which].max()) >= max_vjps - (not first):  # one goes to the true residual
            break
        atoms = operator.structures.atoms_of(open_)
        active = operator.select(open_)
        if first:
            r = g[atoms]
        else:
            r = g[atoms] - _system(active, positions[atoms], u[atoms], damping)
            vjps[which] += 1
            residual[which] = _norms(active, r) / scale[which]
        first = False
        budget = int(max_vjps - vjps[which].max())
        # NaN compares false: a structure with a poisoned residual is not open any more.
        todo = residual[which] > tol
        open_ = torch.zeros_like(open_)
        if not bool(todo.any()):
            break
        if not bool(todo.all()):
            keep = active.structures.atoms_of(todo)
            which, atoms, r, active = which[todo], atoms[keep], r[keep], active.select(todo)
        size = min(restart, budget)
        goal = tol * scale[which]
        du, spent, estimate = _arnoldi(active, positions[atoms], r, damping, goal, size)
        u[atoms] += du
        vjps[which] += spent
        residual[which] = estimate / scale[which]
        open_[which] = residual[which] > tol
    return AdjointSolution(u, residual <= tol, residual, vjps)


def _arnoldi(
    operator: Operator, positions: Tensor, r: Tensor, damping: float, target: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One GMRES cycle from residual r [n, 3]: correction [n, 3], VJPs [s], residual norms [s]."""
    count = operator.structures.count
    active, x = operator, positions
    which = torch.arange(count, device=r.device)
    atoms = torch.arange(len(r), device=r.device)
    beta = _norms(active, r)
    basis = [r / beta.clamp_min(torch.finfo(r.dtype).tiny)[active.structures.batch, None]]
    hessenberg = r.new_zeros((count, size + 1, size), dtype=torch.float64)
    solution, estimate = torch.zeros_like(r), beta.clone()
    spent = torch.zeros(count, dtype=torch.long, device=r.device)
    for j in range(size):
        s = active.structures
        v = basis[-1]
        w = _system(active, x, v, damping)
        spent[which] += 1
        for i, earlier in enumerate(basis):  # modified Gram-Schmidt
            h = segment_dot(w, earlier, s.batch, s.count)
            hessenberg[:, i, j] = h
            w = w - h[s.batch, None] * earlier
        length = _norms(active, w)
        hessenberg[:, j + 1, j] = length
        basis.append(w / length.clamp_min(torch.finfo(r.dtype).tiny)[s.batch, None])

        right = torch.zeros((s.count, j + 2, 1), dtype=torch.float64, device=r.device)
        right[:, 0, 0] = beta
        system = hessenberg[:, : j + 2, : j + 1]
        finite = torch.isfinite(system).all(-1).all(-1)
        safe = torch.where(finite[:, None, None], system, torch.zeros_like(system))
        y = torch.linalg.lstsq(safe, right, driver="gelsd").solution
        error = torch.linalg.vector_norm(right - system @ y, dim=(-2, -1)).to(r.dtype)
        done = (error <= target) | ~finite | (length <= 1e-14 * beta)
        if j == size - 1:
            done = torch.ones_like(done)
        if bool(done.any()):
            keep = s.atoms_of(done)
            coefficients = y.squeeze(-1).to(r.dtype)[s.batch[keep]]
            solution[atoms[keep]] = sum(
                (coefficients[:, i, None] * basis[i][keep] for i in range(j + 1)),
                torch.zeros_like(x[keep]),
            )
            estimate[which[done]] = torch.where(finite, error, torch.nan)[done]
            going = ~done
            if not bool(going.any()):
                break
            rest = s.atoms_of(going)
            which, atoms, x, active = which[going], atoms[rest], x[rest], active.select(going)
            basis = [b[rest] for b in basis]
            hessenberg, beta, target = hessenberg[going], beta[going], target[going]
    return solution, spent, estimate


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
    g = operator.project(g)
    u = g / (1.0 + damping) if guess is None else operator.project(guess)
    scale = _norms(operator, g)
    residual = torch.where(scale == 0, 0.0, torch.inf).to(g.dtype)
    vjps = torch.zeros(len(scale), dtype=torch.long, device=g.device)
    open_ = scale > 0
    for _ in range(max_vjps):
        if not bool(open_.any()):
            break
        atoms = operator.structures.atoms_of(open_)
        active = operator.select(open_)
        error = g[atoms] - _system(active, positions[atoms], u[atoms], damping)
        vjps[open_] += 1
        residual[open_] = _norms(active, error) / scale[open_]
        below = residual <= tol
        going = open_ & ~below & torch.isfinite(residual)
        # The residual just measured is that of the u before this update: keep that one.
        moved = going[operator.structures.batch[atoms]]
        u[atoms[moved]] += error[moved] / (1.0 + damping)
        open_ = going
    return AdjointSolution(u, residual <= tol, residual, vjps)


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
    g = operator.project(g)
    count = operator.structures.count
    return AdjointSolution(
        u=g,
        converged=torch.ones(count, dtype=torch.bool, device=g.device),
        residual=g.new_full((count,), torch.nan),
        vjps=torch.zeros(count, dtype=torch.long, device=g.device),
    )


ADJOINTS: dict[str, Callable[..., AdjointSolution]] = {
    "gmres": gmres,
    "neumann": neumann,
    "identity": identity,
}
