"""Phase 2 of Algorithm 1: find G(X*) = X*, i.e. max|F_free| < fmax, for each structure by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.relax.causes import Cause, has_diverged, or_collapsed
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.packs import Pack
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.relax.settings import Relaxer
from fairchem_gdeq.relax.solvers import Solver
from fairchem_gdeq.relax.structures import Structures


@dataclass(frozen=True)
class Solution:
    """Where each structure ended; errors are values here, never exceptions.

    Attributes:
        positions: [n, 3] X*, Angstrom. A diverged structure holds its best finite positions.
        forces: [n, 3] F at those positions, eV/Angstrom, drift removed where pinned.
        converged: [s] bool, max|F_free| < fmax.
        cause: [s] int8, the ``Cause`` where it has not converged.
        steps: [s] displacements made.
        residual: [s] max|F_free| at ``positions``, eV/Angstrom.
        evaluations: [s] force evaluations spent on each structure.
        removed: [s] largest force on an atom that the projection took out there, eV/Angstrom: net
            force and torque of direct forces.
    """

    positions: Tensor
    forces: Tensor
    converged: Tensor
    cause: Tensor
    steps: Tensor
    residual: Tensor
    evaluations: Tensor
    removed: Tensor

    @property
    def diverged(self) -> Tensor:
        """[s] bool, forces or positions left the finite world, or it has collapsed."""
        return has_diverged(self.cause)


@torch.no_grad()
def solve(
    operator: Operator,
    start: Tensor,
    solver: Solver[Any],
    fmax: float = 0.01,
    max_steps: int = 300,
    observe: Callable[[Tensor, int], None] | None = None,
) -> Solution:
    """Relax every structure from ``start`` until its largest free-atom force is below ``fmax``.

    They are a ``Pack`` that nothing enters: a structure that has converged or diverged leaves at
    once, so that the tail costs only what still moves.

    Args:
        operator: gives forces (drift removed where pinned) and the batch's structures.
        start: [n, 3], Angstrom.
        solver: how to move.
        fmax: eV/Angstrom.
        max_steps: displacements allowed per structure.
        observe: called with (positions [n, 3], step) after each displacement, for trajectories.
    """
    s, device = operator.structures, start.device
    relaxer = Relaxer(horizon=0, solver=solver, fmax=fmax, max_steps=max_steps)
    positions, forces = start.detach().clone(), torch.zeros_like(start)
    removed = start.new_zeros(s.count)
    converged = torch.zeros(s.count, dtype=torch.bool)  # this and what follows on the host
    cause = torch.zeros(s.count, dtype=torch.int8)
    steps, evaluations = torch.zeros(2, s.count, dtype=torch.long)
    residual = torch.full((s.count,), torch.inf, dtype=torch.float64)
    pack: Pack | None = None
    if s.count:
        pack = Pack.begin(list(range(s.count)), operator, start, relaxer)
    step = 0
    while pack is not None:
        ended, pack = pack.advance(pack.evaluate(), relaxer)
        if ended is not None:
            rows = torch.tensor(ended.keys)
            atoms = _atoms(operator, rows)
            positions[atoms], forces[atoms] = ended.positions, ended.forces
            removed[to_device(rows, device)] = ended.removed
            converged[rows], cause[rows] = ended.converged, ended.cause
            steps[rows], evaluations[rows] = ended.steps, ended.evaluations
            residual[rows] = ended.residual
        step += 1
        if observe is not None and pack is not None:
            atoms = _atoms(operator, torch.tensor(pack.keys))
            observe(positions.index_copy(0, atoms, pack.positions), step)
    return Solution(
        positions=positions,
        forces=forces,
        converged=to_device(converged, device),
        cause=to_device(cause, device),
        steps=to_device(steps, device),
        residual=to_device(residual.to(start.dtype), device),
        evaluations=to_device(evaluations, device),
        removed=removed,
    )


def without_collapsed(found: Solution, structures: Structures) -> Solution:
    """The same, where a structure in which two atoms fell into one has diverged.

    A potential that was never shown such atoms may have small forces there.
    """
    cause = or_collapsed(found.cause, structures.shortest_distances(found.positions))
    return replace(found, cause=cause, converged=found.converged & (cause == Cause.NONE))


def _atoms(operator: Operator, rows: Tensor) -> Tensor:
    """Indices [m] of the atoms of the structures with ascending indices [k] on the host."""
    mask = torch.zeros(operator.structures.count, dtype=torch.bool)
    mask[rows] = True
    return operator.structures.atoms_of(mask)
