"""Structures being relaxed together, each at its own stage: guidance steps, then the solver.

What happens to a structure is what ``rollout`` and then ``solve`` would do to it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.guidance import lost
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.solvers import Solver, examine

ATOM = ("positions", "origin", "best")
STRUCTURE = ("guiding", "strayed", "steps", "evaluations", "residual")


@dataclass(frozen=True)
class Course:
    """How a structure is relaxed.

    Attributes:
        horizon: plain steps X + alpha F at first.
        solver: makes the solver that goes on from there.
        fmax: convergence, eV/Angstrom.
        max_steps: displacements allowed to the solver.
    """

    horizon: int
    solver: Callable[[], Solver]
    fmax: float
    max_steps: int


@dataclass(frozen=True)
class Ending:
    """How one structure ended; errors are values here, as in ``Solution``.

    Attributes:
        key: what its arrival was called.
        positions: [n, 3] X*, Angstrom; the best finite ones if it diverged.
        converged: max|F_free| < fmax, and it did not diverge on the way.
        diverged: forces or positions left the finite world.
        fitted: False if memory did not suffice for this structure alone: it is not relaxed.
        steps: displacements by the solver.
        evaluations: force evaluations.
        residual: max|F_free| at ``positions``, eV/Angstrom; infinite where never known.
    """

    key: int
    positions: Tensor
    converged: bool
    diverged: bool
    fitted: bool
    steps: int
    evaluations: int
    residual: float


@dataclass(frozen=True)
class Flight:
    """One or more structures under way.

    Attributes:
        keys: s names.
        operator: G on the s structures.
        solver: its state, meaningful only for structures past their guidance.
        positions: [n, 3] where the next force evaluation takes place, Angstrom.
        origin: [n, 3] where the solver began.
        best: [n, 3] the last positions with sound forces since then.
        guiding: [s] guidance steps still to go.
        strayed: [s] bool, diverged in its guidance: the solver began at the last sound positions.
        steps, evaluations, residual: [s] as in ``Ending``.
    """

    keys: list[int]
    operator: Operator
    solver: Solver
    positions: Tensor
    origin: Tensor
    best: Tensor
    guiding: Tensor
    strayed: Tensor
    steps: Tensor
    evaluations: Tensor
    residual: Tensor

    @classmethod
    def begin(cls, key: int, operator: Operator, start: Tensor, course: Course) -> Flight:
        """One structure at its start [n, 3]."""
        start = start.detach()
        solver = course.solver()
        solver.start(operator, start)
        zero = torch.zeros(1, dtype=torch.long, device=start.device)
        return cls(
            keys=[key],
            operator=operator,
            solver=solver,
            positions=start,
            origin=start,
            best=start,
            guiding=zero + course.horizon,
            strayed=zero.bool(),
            steps=zero,
            evaluations=zero,
            residual=start.new_full((1,), torch.inf),
        )

    @property
    def atoms(self) -> Tensor:
        """Number of atoms [s] of each structure."""
        s = self.operator.structures
        return torch.bincount(s.batch, minlength=s.count)

    def select(self, structures: Tensor) -> Flight:
        """The structures where the mask [s] holds; this flight stays as it is."""
        if bool(structures.all()):
            return self
        atoms = self.operator.structures.atoms_of(structures)
        solver = copy.copy(self.solver)
        solver.select(structures, atoms)
        kept = structures.tolist()
        return replace(
            self,
            keys=[key for key, keep in zip(self.keys, kept, strict=True) if keep],
            operator=self.operator.select(structures),
            solver=solver,
            **{name: getattr(self, name)[atoms] for name in ATOM},
            **{name: getattr(self, name)[structures] for name in STRUCTURE},
        )

    def join(self, others: Sequence[Flight]) -> Flight:
        """The structures of this flight followed by those of ``others``."""
        if not others:
            return self
        solver = copy.copy(self.solver)
        solver.join([other.solver for other in others])
        parts = [self, *others]
        return replace(
            self,
            keys=[key for part in parts for key in part.keys],
            operator=self.operator.join([other.operator for other in others]),
            solver=solver,
            **{
                name: torch.cat([getattr(part, name) for part in parts])
                for name in (*ATOM, *STRUCTURE)
            },
        )

    def advance(self, forces: Tensor, course: Course) -> tuple[list[Ending], Flight | None]:
        """Use the forces [n, 3] at ``positions``: those that ended, and the rest one step further."""
        s = self.operator.structures
        guiding = self.guiding > 0
        force, bad = examine(s, self.positions, forces, self.origin)
        sound = ~guiding & ~bad
        here = replace(
            self,
            evaluations=self.evaluations + 1,
            residual=torch.where(sound, force, self.residual),
            best=torch.where(sound[s.batch, None], self.positions, self.best),
        )
        done = ~guiding & (force < course.fmax) & ~bad
        bad = ~guiding & bad
        ended = done | bad | (~guiding & (self.steps >= course.max_steps))
        if not bool(ended.any()):
            return [], here._move(forces)
        endings = here._endings(done, bad, ended)
        if bool(ended.all()):
            return endings, None
        return endings, here.select(~ended)._move(forces[s.atoms_of(~ended)])

    def unfitted(self) -> list[Ending]:
        """All of its structures as they are, for want of memory."""
        never = torch.zeros_like(self.strayed)
        return self._endings(never, never, ~never, fitted=False)

    def _endings(
        self, done: Tensor, bad: Tensor, ended: Tensor, fitted: bool = True
    ) -> list[Ending]:
        """Where the mask ``ended`` [s] holds; ``done`` and ``bad`` [s] say how."""
        diverged = bad | self.strayed
        columns = (done & ~diverged, diverged, self.steps, self.evaluations, self.residual)
        places = torch.split(self.best, self.atoms.tolist())
        rows = zip(self.keys, places, *(column.tolist() for column in columns), strict=True)
        return [
            Ending(key, best, converged, gone, fitted, steps, evaluations, residual)
            for leaves, (key, best, converged, gone, steps, evaluations, residual) in zip(
                ended.tolist(), rows, strict=True
            )
            if leaves
        ]

    def _move(self, forces: Tensor) -> Flight:
        """One displacement: alpha F in the guidance, the solver's afterwards."""
        batch = self.operator.structures.batch
        guiding = self.guiding > 0
        solving = ~guiding[batch, None]
        # The solver sees no forces where its turn has not come; it is started anew then.
        own = torch.where(solving, forces, 0.0)
        move = self.solver.propose(self.operator, self.positions, own)
        strayed = torch.zeros_like(guiding)
        if bool(guiding.any()):
            plain = self.operator.step(forces)
            strayed = guiding & lost(self.operator, plain)
            move = torch.where(solving, move, plain)
            move = torch.where(strayed[batch, None], 0.0, move)
        left = torch.where(strayed, 0, (self.guiding - 1).clamp_min(0))
        moved = replace(
            self,
            positions=self.positions + move,
            guiding=left,
            strayed=self.strayed | strayed,
            steps=self.steps + (~guiding).long(),
        )
        return moved._hand_over(guiding & (left == 0))

    def _hand_over(self, ready: Tensor) -> Flight:
        """The solver begins with the structures where the mask [s] holds; they come last then."""
        if not bool(ready.any()):
            return self
        new = self.select(ready)
        solver = copy.copy(new.solver)
        solver.start(new.operator, new.positions)
        new = replace(new, solver=solver, origin=new.positions, best=new.positions)
        return new if bool(ready.all()) else self.select(~ready).join([new])
