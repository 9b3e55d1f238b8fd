"""Phase 1 of Algorithm 1: the K-step guidance rollout and its exact gradient (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_max_norm, segment_norm, segment_sum


@dataclass(frozen=True)
class Step:
    """One application of G: the structures that still moved, and where they were.

    Attributes:
        operator: G restricted to the moving structures.
        atoms: [m] indices of their atoms in the whole batch.
        positions: [m, 3] X_t of those atoms, Angstrom.
    """

    operator: Operator
    atoms: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Rollout:
    """X_0 ... X_K without any autograd graph.

    Attributes:
        steps: the applications of G, in order.
        positions: [n, 3] X_K, Angstrom; a diverged structure stays at its last good positions.
        settled: [s] bool, structures masked because their step fell below the threshold.
        diverged: [s] bool, structures that left the finite world and were taken out.
        evaluations: [s] force evaluations spent on each structure.
    """

    steps: list[Step]
    positions: Tensor
    settled: Tensor
    diverged: Tensor
    evaluations: Tensor


MAX_TRAVEL = 10.0  # Angstrom in one step: no relaxation moves an atom so far; it has diverged


def lost(operator: Operator, move: Tensor) -> Tensor:
    """Mask [s] of structures with a step that is not finite or absurdly long."""
    s = operator.structures
    longest = segment_max_norm(move, s.batch, s.count)
    return ~(longest < MAX_TRAVEL)


def _rmse(operator: Operator, move: Tensor) -> Tensor:
    """Root-mean-square displacement [s] over the free atoms of each structure."""
    s = operator.structures
    number = segment_sum(s.free.to(move.dtype), s.batch, s.count).clamp_min(1.0)
    return segment_norm(move, s.batch, s.count) / number.sqrt()


def rollout(operator: Operator, start: Tensor, horizon: int, step_tol: float = 0.0) -> Rollout:
    """Apply G ``horizon`` times, keeping only positions: memory n x 3 per step.

    Args:
        operator: G on the whole batch.
        start: [n, 3] X_0, Angstrom.
        horizon: K.
        step_tol: a structure whose RMS step falls below this (Angstrom) is masked from there on.
    """
    return _roll(operator, start, horizon, step_tol, graph=False)[0]


def _roll(
    operator: Operator, start: Tensor, horizon: int, step_tol: float, graph: bool
) -> tuple[Rollout, Tensor]:
    """The rollout; with ``graph`` the second value is X_K with its stored autograd graph."""
    s = operator.structures
    moving = torch.ones(s.count, dtype=torch.bool, device=start.device)
    settled, diverged = torch.zeros_like(moving), torch.zeros_like(moving)
    evaluations = torch.zeros(s.count, dtype=torch.long, device=start.device)
    active, atoms = operator, torch.arange(len(start), device=start.device)
    steps: list[Step] = []
    x = start.detach()
    with torch.set_grad_enabled(graph):
        for _ in range(horizon):
            here = x[atoms]
            after = active(here)
            move = (after - here).detach()
            evaluations[moving] += 1
            bad = lost(active, move)
            if bool(bad.any()):
                where = moving.nonzero().squeeze(-1)
                diverged[where[bad]] = True
                moving = moving & ~diverged
                if not bool(moving.any()):
                    break
                # The bad structures' last evaluation must leave no trace, in the graph least of
                # all (0 * NaN): repeat it without them, and do not count it twice.
                keep = active.structures.atoms_of(~bad)
                active, atoms, here = active.select(~bad), atoms[keep], here[keep]
                after = active(here)
                move = (after - here).detach()
            steps.append(Step(active, atoms, here.detach()))
            x = x.index_copy(0, atoms, after)
            still = _rmse(active, move) >= step_tol
            if not bool(still.all()):
                where = moving.nonzero().squeeze(-1)
                settled[where[~still]] = True
                moving = moving & ~settled
                if not bool(moving.any()):
                    break
                atoms = atoms[active.structures.atoms_of(still)]
                active = active.select(still)
    return Rollout(steps, x.detach(), settled, diverged, evaluations), x


def sweep(path: Rollout, adjoint: Tensor) -> Tensor:
    """Discrete adjoint of a rollout: exact eq. 3 with one evaluation's activations at a time.

    lam_K = dL/dX_K; for t = K-1 ... 0: lam_t = lam_{t+1}^T dG/dX(X_t), while
    lam_{t+1}^T dG/dtheta(X_t) is added to the parameters' ``.grad``.

    Args:
        path: the rollout; its memory is K x n x 3.
        adjoint: [n, 3] dL/dX_K, zero on diverged structures.

    Returns:
        [n, 3] dL/dX_0 on free atoms.
    """
    lam = adjoint.clone()
    for step in reversed(path.steps):
        vector = lam[step.atoms]
        lam[step.atoms] = step.operator.vjp(step.positions, vector, accumulate=True)
    return lam


StructureLoss = Callable[[Tensor], Tensor]
"""Maps positions [n, 3] to one loss per structure [s]."""


def _weighted(losses: Tensor, diverged: Tensor, weight: float) -> Tensor:
    """``weight`` times the batch mean of losses [s], where diverged structures count as zero."""
    return weight * torch.where(diverged, torch.zeros_like(losses), losses).mean()


def guidance_by_sweep(
    operator: Operator,
    start: Tensor,
    horizon: int,
    loss: StructureLoss,
    weight: float,
    step_tol: float = 0.0,
) -> tuple[Rollout, Tensor, float]:
    """Roll out, then add the gradient of ``weight * mean(loss(X_K))`` by the backward sweep.

    Returns:
        The rollout, the losses [s] at X_K and the weighted batch mean.
    """
    path = rollout(operator, start, horizon, step_tol)
    with torch.enable_grad():
        x = path.positions.detach().requires_grad_(True)
        losses = loss(x)
        total = _weighted(losses, path.diverged, weight)
        (lam,) = torch.autograd.grad(total, x)
    sweep(path, lam)
    return path, losses.detach(), float(total.detach())


def guidance_by_stored_graph(
    operator: Operator,
    start: Tensor,
    horizon: int,
    loss: StructureLoss,
    weight: float,
    step_tol: float = 0.0,
) -> tuple[Rollout, Tensor, float]:
    """The same by autograd through the stored K-step graph: O(K) memory, for reference."""
    path, x = _roll(operator, start, horizon, step_tol, graph=True)
    with torch.enable_grad():
        losses = loss(x)
        total = _weighted(losses, path.diverged, weight)
        if path.steps:
            torch.autograd.backward(total)
    return path, losses.detach(), float(total.detach())


GUIDANCE_GRADIENTS = {"sweep": guidance_by_sweep, "stored_graph": guidance_by_stored_graph}
