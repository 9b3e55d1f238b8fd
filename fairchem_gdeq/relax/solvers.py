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
from fairchem_gdeq.relax.segments import segment_max_norm, to_device, to_host
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
        """Keep the state of the structures with indices [k], whose atoms have indices [m]."""
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
        removed: [s] largest force on an atom that the projection took out there, eV/Angstrom: net
            force and torque of direct forces.
    """

    positions: Tensor
    forces: Tensor
    converged: Tensor
    diverged: Tensor
    steps: Tensor
    residual: Tensor
    evaluations: Tensor
    removed: Tensor


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
    best, best_forces = start.detach().clone(), torch.zeros_like(start)
    converged, diverged = torch.zeros(2, count, dtype=torch.bool)  # these and the like on the host
    steps, evaluations = torch.zeros(2, count, dtype=torch.long)
    residual = torch.full((count,), torch.inf, dtype=torch.float64)
    removed = start.new_zeros(count)

    active, which = operator, torch.arange(count)
    atoms = torch.arange(len(start), device=device)
    here = origin = start.detach()
    last = State(here, torch.zeros_like(here), torch.zeros_like(here), residual)
    solver.start(active, here)
    for step in range(max_steps + 1):
        s = active.structures
        raw = active.field(here)
        forces = active.project(raw, here)
        force, travel = to_host(*extremes(s, here, forces, origin))
        bad = ~(force < max_force) | ~(travel < max_travel)
        done = (force < fmax) & ~bad
        now = State(here, forces, raw, force)
        ended = done | bad if step < max_steps else torch.ones_like(done)
        if bool(ended.any()):
            # What is reported of a structure is its last state, or, if that is bad, the one before.
            for state, chosen in ((now, ended & ~bad), (last, bad)):
                if not bool(chosen.any()):
                    continue
                mine, rows = s.atoms_of(chosen), which[chosen]
                best[atoms[mine]], best_forces[atoms[mine]] = state.x[mine], state.forces[mine]
                residual[rows] = state.force[chosen]
                taken = torch.where(s.free[:, None], state.raw - state.forces, 0.0)
                taken = segment_max_norm(taken, s.batch, s.count)
                keys = to_device(chosen.nonzero().squeeze(-1), device)
                removed[to_device(rows, device)] = taken[keys]
            converged[which[done]], diverged[which[bad]] = True, True
            steps[which[ended]], evaluations[which[ended]] = step, step + 1
            going = ~ended
            if not bool(going.any()):
                break
            keep = s.atoms_of(going)
            solver.select(to_device(going.nonzero().squeeze(-1), device), keep)
            active, which = active.select(going), which[going]
            atoms, origin, here = atoms[keep], origin[keep], here[keep]
            now = State(here, forces[keep], raw[keep], force[going])
        last = now
        here = here + solver.propose(active, here, now.forces)
        if observe is not None:
            observe(best.index_copy(0, atoms, here), step + 1)
    return Solution(
        positions=best,
        forces=best_forces,
        converged=to_device(converged, device),
        diverged=to_device(diverged, device),
        steps=to_device(steps, device),
        residual=to_device(residual.to(start.dtype), device),
        evaluations=to_device(evaluations, device),
        removed=removed,
    )


@dataclass(frozen=True)
class State:
    """One evaluation: positions, forces, the same before projection [n, 3], max|F| [s] on the host."""

    x: Tensor
    forces: Tensor
    raw: Tensor
    force: Tensor


def extremes(
    structures: Structures, positions: Tensor, forces: Tensor, origin: Tensor
) -> tuple[Tensor, Tensor]:
    """max|F_free| [s] (eV/Angstrom) and the longest way of an atom from ``origin`` [s] (Angstrom)."""
    force = segment_max_norm(forces, structures.batch, structures.count)
    return force, segment_max_norm(positions - origin, structures.batch, structures.count)


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
