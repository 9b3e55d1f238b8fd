"""What a potential does with one structure: where its target goes, where its start goes, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs
from torch import Tensor

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.frozen.field import FrozenGraphField
from fairchem_gdeq.relax import Operator, Relaxer, solve
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.relax.loss import delta_q, max_displacement
from fairchem_gdeq.relax.settings import require_not_negative

RIGHT, IMPRECISE, WRONG, UNFINISHED = "right", "imprecise", "wrong", "unfinished"
MARKS = (0, 5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(frozen=True)
class Probe:
    """How structures are examined.

    Attributes:
        structures: how many, taken at random from the training split.
        starts: further starts of each, with every free atom moved at random.
        shift: standard deviation of that, Angstrom.
        same: two ends are one minimum where no free atom is farther apart than this, Angstrom.
        max_steps: plain steps after which a relaxation is not followed any more.
    """

    structures: int = 24
    starts: int = 4
    shift: float = 0.1
    same: float = 0.3
    max_steps: int = 400

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a number that cannot be meant; says which.
        """
        require_not_negative(starts=self.starts, shift=self.shift, max_steps=self.max_steps)
        if self.structures < 1 or not self.same > 0:
            raise ValueError(
                f"diagnose: structures={self.structures}, same={self.same}: expected at least one "
                "structure, and a positive distance"
            )


@dataclass(frozen=True)
class Finding:
    """What was found about a structure. Forces in eV/Angstrom, Delta Q in amu^0.5 Angstrom.

    Attributes:
        sid, row, atoms: which, and its size.
        target_force_max, target_force_mean: the potential's forces on free atoms at the target.
        target_moved: Delta Q from the target to where the potential takes it.
        target_stays: whether that is within the basin's criterion.
        end_delta_q: Delta Q from the target to where the start ends.
        end: ``right`` (within the basin's criterion), ``imprecise`` (in the minimum to which the target
            goes, and not within the criterion), ``wrong`` (elsewhere) or ``unfinished``.
        minima: different ends of the start, of the further starts and of the target.
        length: T, plain steps until the forces are below fmax; None where they are not.
        decided: the first of ``MARKS`` from which on a solver ends where the plain steps end; None if
            none.
        stiffest: largest curvature at the start's end, eV/Angstrom^2; NaN where not known.
        stale_force: largest difference of the forces at X_K between the graph of X_0 and a fresh one.
        stale_edges: edges by which the two differ.
    """

    sid: str
    row: int
    atoms: int
    target_force_max: float
    target_force_mean: float
    target_moved: float
    target_stays: bool
    end_delta_q: float
    end: str
    minima: int
    length: int | None
    decided: int | None
    stiffest: float
    stale_force: float
    stale_edges: int


class End(NamedTuple):
    """Where a relaxation ended: positions [n, 3], Angstrom, and whether it is over."""

    positions: Tensor
    over: bool


@torch.no_grad()
def examine(
    label: Label,
    operator: Operator,
    start: Tensor,
    target: Tensor,
    relaxer: Relaxer,
    basin: Basin,
    probe: Probe,
    budget: int,
) -> Finding:
    """One structure.

    Args:
        label: which it is; its row is the seed of the further starts.
        operator: G of the structure alone, its graph built anew at every evaluation.
        start, target: [n, 3] X_0 and X_gt, Angstrom.
        relaxer: how starts are relaxed.
        basin: when an end is right.
        probe: what is tried.
        budget: atoms evaluated together.
    """
    free = operator.structures.free
    forces = operator.forces(target)[free].norm(dim=-1)
    starts = [target, start, *_further(start, free, probe, label.row)]
    stayed, end, *others = ends_of(operator, starts, relaxer, budget)

    def apart(a: Tensor, b: Tensor) -> tuple[float, float]:
        s, pin = operator.structures, operator.pin
        return float(delta_q(a, b, s, pin)), float(max_displacement(a, b, s, pin))

    moved, far = apart(stayed.positions, target)[0], apart(end.positions, target)[0]
    kind = WRONG
    if not end.over:
        kind = UNFINISHED
    elif far < basin.delta_q:
        kind = RIGHT
    elif stayed.over and apart(end.positions, stayed.positions)[1] < probe.same:
        kind = IMPRECISE
    minima: list[Tensor] = []
    for each in (stayed, end, *others):
        if each.over and all(apart(each.positions, m)[1] >= probe.same for m in minima):
            minima.append(each.positions)
    length, decided = _way(operator, start, relaxer, probe, budget)
    stale_force, stale_edges = _stale(operator, start, relaxer.horizon)
    return Finding(
        sid=label.sid,
        row=label.row,
        atoms=len(start),
        target_force_max=float(forces.max()),
        target_force_mean=float(forces.mean()),
        target_moved=moved,
        target_stays=stayed.over and moved < basin.delta_q,
        end_delta_q=far,
        end=kind,
        minima=len(minima),
        length=length,
        decided=decided,
        stiffest=_stiffest(operator, end.positions) if end.over else float("nan"),
        stale_force=stale_force,
        stale_edges=stale_edges,
    )


def ends_of(
    operator: Operator, starts: Sequence[Tensor], relaxer: Relaxer, budget: int
) -> list[End]:
    """Relax one structure from several starts [n, 3], as many together as the budget of atoms allows."""
    found = []
    together = max(1, budget // len(starts[0]))
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        many = operator.join([operator] * (len(some) - 1))
        path = rollout(many, torch.cat(list(some)), relaxer.horizon, relaxer.fmax)
        end = solve(many, path.positions, relaxer.solver, relaxer.fmax, relaxer.max_steps)
        over = (end.converged & ~path.diverged).tolist()
        pieces = end.positions.split(len(some[0]))
        found += [End(x, bool(done)) for x, done in zip(pieces, over, strict=True)]
    return found


def _further(start: Tensor, free: Tensor, probe: Probe, seed: int) -> list[Tensor]:
    """Starts with every free atom moved."""
    random = np.random.default_rng(seed)
    moves = random.normal(scale=probe.shift, size=(probe.starts, *start.shape))
    return [start + torch.as_tensor(m).to(start) * free[:, None] for m in moves]


def _way(
    operator: Operator, start: Tensor, relaxer: Relaxer, probe: Probe, budget: int
) -> tuple[int | None, int | None]:
    """``Finding.length`` and ``Finding.decided``."""
    path = rollout(operator, start, probe.max_steps, relaxer.fmax)
    if bool(path.diverged):
        return None, None
    length = int(path.evaluations) if bool(path.settled) else None
    marks = [t for t in MARKS if t < len(path.steps)]
    solver = Relaxer(0, relaxer.solver, relaxer.fmax, relaxer.max_steps)
    points = [path.steps[t].positions for t in marks]
    last, *ends = ends_of(operator, [path.positions, *points], solver, budget)
    decided = None
    for mark, end in reversed(list(zip(marks, ends, strict=True))):
        s, pin = operator.structures, operator.pin
        apart = float(max_displacement(end.positions, last.positions, s, pin))
        if not (end.over and last.over and apart < probe.same):
            break
        decided = mark
    return length, decided


def _stiffest(operator: Operator, positions: Tensor) -> float:
    """The largest curvature of F at positions [n, 3], by Arnoldi's method on VJPs."""
    held, free = operator.freeze(positions), operator.structures.free.cpu().numpy()
    size, alpha = 3 * int(free.sum()), float(operator.alpha)

    def product(vector: Any) -> Any:
        lam = np.zeros((len(free), 3))
        lam[free] = vector.reshape(-1, 3)
        given = torch.as_tensor(lam).to(positions)
        out = (held.vjp(positions, given) - given) / alpha
        return out.double().cpu().numpy()[free].ravel()

    begun = np.random.default_rng(0).normal(size=size)
    matrix = LinearOperator((size, size), matvec=product, dtype=float)
    try:
        values = eigs(
            matrix, 1, which="LM", v0=begun, tol=0.02, maxiter=10, return_eigenvectors=False
        )
    except (ArpackNoConvergence, TypeError):  # a TypeError: fewer than three unknowns
        return float("nan")
    return float(-values[0].real)


def _stale(operator: Operator, start: Tensor, horizon: int) -> tuple[float, int]:
    """``Finding.stale_force`` and ``Finding.stale_edges``."""
    held = operator.freeze(start)
    there = rollout(held, start, horizon).positions
    apart = (operator.forces(there) - held.forces(there)).norm(dim=-1)
    field, edges = held.field, 0
    if isinstance(field, FrozenGraphField) and field.has_graph:
        edges = int(field.edges_changed(there).sum())
    return float(apart.max()), edges
