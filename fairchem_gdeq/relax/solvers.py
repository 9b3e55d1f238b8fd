"""Phase 2 of Algorithm 1: find G(X*) = X*, i.e. max|F_free| < fmax, for each structure by itself.

A solver proposes displacements; ``solve`` does the rest: convergence per structure, compaction,
divergence, counting. A new solver is one small class with the four methods of ``Solver``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_max_norm
from fairchem_gdeq.relax.structures import Structures

MAX_FORCE = 1e3  # eV/Angstrom: a structure with a larger force has diverged
MAX_TRAVEL = 10.0  # Angstrom: so has one with an atom further from where the solve began


class Solver(Protocol):
    """A relaxer for a batch; its instance holds the state of one solve.

    Every structure's state is its own: what it does depends on nothing but its own path. ``start``,
    ``select`` and ``join`` bind new state and leave the old in place, so that a shallow copy of a
    solver may be selected from while the original goes on.
    """

    def start(self, operator: Operator, positions: Tensor) -> None:
        """Forget everything and prepare for the structures of ``operator``."""
        ...

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """Displacement [n, 3] (Angstrom) from positions [n, 3] with forces [n, 3]."""
        ...

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Keep the state of the structures where mask [s] holds, whose atoms are ``atoms`` [m]."""
        ...

    def join(self, others: Sequence[Self]) -> None:
        """Append the states of ``others``, of the same settings, each at its own stage."""
        ...


@dataclass(frozen=True)
class Solution:
    """Where each structure ended; errors are values here, never exceptions.

    Attributes:
        positions: [n, 3] X*, Angstrom. A diverged structure holds its best finite positions.
        forces: [n, 3] F at those positions, eV/Angstrom, drift removed where pinned.
        converged: [s] bool, max|F_free| < fmax.
        diverged: [s] bool, forces or positions left the finite world.
        steps: [s] displacements made.
        residual: [s] max|F_free| at ``positions``, eV/Angstrom.
        evaluations: [s] force evaluations spent on each structure.
    """

    positions: Tensor
    forces: Tensor
    converged: Tensor
    diverged: Tensor
    steps: Tensor
    residual: Tensor
    evaluations: Tensor


@torch.no_grad()
def solve(
    operator: Operator,
    start: Tensor,
    solver: Solver,
    fmax: float = 0.01,
    max_steps: int = 300,
    max_force: float = MAX_FORCE,
    max_travel: float = MAX_TRAVEL,
    observe: Callable[[Tensor, int], None] | None = None,
) -> Solution:
    """Relax every structure from ``start`` until its largest free-atom force is below ``fmax``.

    A structure that has converged or diverged leaves the batch at once, so that the tail costs only
    what still moves.

    Args:
        operator: gives forces (drift removed where pinned) and the batch's structures.
        start: [n, 3], Angstrom.
        solver: how to move; its state is reset here.
        fmax: eV/Angstrom.
        max_steps: displacements allowed per structure.
        max_force: a structure whose max|F| exceeds this (eV/Angstrom) has diverged.
        max_travel: one with an atom further than this from its start (Angstrom) has diverged.
        observe: called with (positions [n, 3], step) after each displacement, for trajectories.
    """
    count, device = operator.structures.count, start.device
    x = start.detach().clone()
    best = x.clone()
    best_forces = torch.zeros_like(x)
    residual = torch.full((count,), torch.inf, dtype=x.dtype, device=device)
    converged = torch.zeros(count, dtype=torch.bool, device=device)
    diverged = torch.zeros_like(converged)
    steps = torch.zeros(count, dtype=torch.long, device=device)
    evaluations = torch.zeros_like(steps)

    active = operator
    which = torch.arange(count, device=device)
    atoms = torch.arange(len(x), device=device)
    solver.start(active, x)
    for step in range(max_steps + 1):
        here = x[atoms]
        s = active.structures
        forces = active.forces(here)
        evaluations[which] += 1
        force, bad = examine(s, here, forces, start[atoms], max_force, max_travel)
        done = (force < fmax) & ~bad
        # What is reported of a structure is its last state, or, if that is bad, the last good one.
        good = ~bad[s.batch]
        best[atoms[good]], best_forces[atoms[good]] = here[good], forces[good]
        residual[which[~bad]] = force[~bad]
        converged[which[done]], diverged[which[bad]] = True, True
        going = ~(done | bad)
        if not bool(going.any()) or step == max_steps:
            break
        if not bool(going.all()):
            keep = s.atoms_of(going)
            solver.select(going, keep)
            active = active.select(going)
            which, atoms, here, forces = which[going], atoms[keep], here[keep], forces[keep]
        x[atoms] = here + solver.propose(active, here, forces)
        steps[which] += 1
        if observe is not None:
            observe(x, step + 1)
    return Solution(best, best_forces, converged, diverged, steps, residual, evaluations)


def examine(
    structures: Structures,
    positions: Tensor,
    forces: Tensor,
    start: Tensor,
    max_force: float = MAX_FORCE,
    max_travel: float = MAX_TRAVEL,
) -> tuple[Tensor, Tensor]:
    """max|F_free| [s] (eV/Angstrom), and the mask [s] of structures that have diverged.

    Positions, forces and start are [n, 3]; NaN counts as diverged.
    """
    force = segment_max_norm(forces, structures.batch, structures.count)
    travel = segment_max_norm(positions - start, structures.batch, structures.count)
    return force, ~(force < max_force) | ~(travel < max_travel)


def limit(move: Tensor, longest: float, operator: Operator) -> Tensor:
    """Scale each structure's displacement [n, 3] so that no atom moves further than ``longest``."""
    s = operator.structures
    length = segment_max_norm(move, s.batch, s.count)
    return move * (longest / length.clamp_min(longest))[s.batch, None]


class Picard:
    """X <- G(X): the operator itself, as the papers' plain relaxation."""

    def start(self, operator: Operator, positions: Tensor) -> None:
        """Nothing to prepare."""

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """alpha F, capped as the operator says."""
        return operator.step(forces)

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """No state."""

    def join(self, others: Sequence[Picard]) -> None:
        """No state."""


def make_solver(name: str, **options: Any) -> Solver:
    """A solver by name: ``picard``, ``anderson``, ``fire`` or ``lbfgs``.

    Raises:
        ValueError: no such solver.
    """
    from fairchem_gdeq.relax.anderson import Anderson
    from fairchem_gdeq.relax.fire import FIRE
    from fairchem_gdeq.relax.lbfgs import LBFGS

    known: dict[str, Callable[..., Solver]] = {
        "picard": Picard,
        "anderson": Anderson,
        "fire": FIRE,
        "lbfgs": LBFGS,
    }
    if name not in known:
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(known)}")
    return known[name](**options)
