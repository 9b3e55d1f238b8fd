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
from fairchem_gdeq.relax.segments import segment_max_norm, to_device, to_host
from fairchem_gdeq.relax.solvers import MAX_FORCE, MAX_TRAVEL, Solver, extremes

ATOM = ("positions", "origin", "before")  # on the device
STRUCTURE = ("guiding", "strayed", "steps", "evaluations", "residual")  # on the host


@dataclass(frozen=True)
class Course:
    """How a structure is relaxed.

    Attributes:
        horizon: plain steps X + alpha F at first, fewer where the forces fall below ``fmax``.
        solver: makes the solver that goes on from there.
        fmax: convergence, eV/Angstrom.
        max_steps: displacements allowed to the solver.
    """

    horizon: int
    solver: Callable[[], Solver]
    fmax: float
    max_steps: int


@dataclass(frozen=True)
class Outcome:
    """How one structure ended; errors are values here, as in ``Solution``.

    Attributes:
        key: what its request was called.
        positions: [n, 3] X*, Angstrom, on the host; the best finite ones if it diverged. From another
            device they are there when the host has next waited for it.
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
        before: [n, 3] where the last one took place.
        guiding: [s] guidance steps still to go; this and what follows on the host.
        strayed: [s] bool, diverged in its guidance: the solver began at the last sound positions.
        steps, evaluations, residual: [s] as in ``Outcome``.
    """

    keys: list[int]
    operator: Operator
    solver: Solver
    positions: Tensor
    origin: Tensor
    before: Tensor
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
        zero = torch.zeros(1, dtype=torch.long)
        return cls(
            keys=[key],
            operator=operator,
            solver=solver,
            positions=start,
            origin=start,
            before=start,
            guiding=zero + course.horizon,
            strayed=zero.bool(),
            steps=zero,
            evaluations=zero,
            residual=torch.full((1,), torch.inf, dtype=torch.float64),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of atoms of each structure."""
        return self.operator.structures.sizes

    def select(self, structures: Tensor) -> Flight:
        """The structures where the mask [s], on the host, holds; this flight stays as it is."""
        if bool(structures.all()):
            return self
        atoms = self.operator.structures.atoms_of(structures)
        rows = structures.nonzero().squeeze(-1)
        solver = copy.copy(self.solver)
        solver.select(to_device(rows, atoms.device), atoms)
        return replace(
            self,
            keys=[self.keys[k] for k in rows.tolist()],
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

    def advance(self, forces: Tensor, course: Course) -> tuple[list[Outcome], Flight | None]:
        """Use the forces [n, 3] at ``positions``: those that ended, and the rest one step further."""
        s, guiding = self.operator.structures, self.guiding > 0
        asked = list(extremes(s, self.positions, forces, self.origin))
        plain, strayed = None, torch.zeros_like(guiding)
        if bool(guiding.any()):
            plain = self.operator.step(forces)
            asked.append(segment_max_norm(plain, s.batch, s.count))
        force, travel, *stride = to_host(*asked)
        if stride:
            strayed = guiding & lost(stride[0])
        bad = ~guiding & (~(force < MAX_FORCE) | ~(travel < MAX_TRAVEL))
        done = ~guiding & (force < course.fmax) & ~bad
        ended = done | bad | (~guiding & (self.steps >= course.max_steps))
        # A structure whose forces are below fmax needs no more guidance than this step.
        left = torch.where(strayed | (force < course.fmax), 0, (self.guiding - 1).clamp_min(0))
        here = replace(
            self,
            evaluations=self.evaluations + 1,
            residual=torch.where(guiding | bad, self.residual, force),
        )
        outcomes = here._outcomes(done, bad, ended)
        if bool(ended.all()):
            return outcomes, None
        if outcomes:
            going, atoms = ~ended, s.atoms_of(~ended)
            here, forces = here.select(going), forces[atoms]
            plain = None if plain is None else plain[atoms]
            strayed, left = strayed[going], left[going]
        return outcomes, here._move(forces, plain, strayed, left)

    def unfitted(self) -> list[Outcome]:
        """All of its structures as they are, for want of memory."""
        never = torch.zeros_like(self.strayed)
        return self._outcomes(never, never, ~never, fitted=False)

    def _outcomes(
        self, done: Tensor, bad: Tensor, ended: Tensor, fitted: bool = True
    ) -> list[Outcome]:
        """Where the mask ``ended`` [s] holds; ``done`` and ``bad`` [s] say how.

        Where the evaluation at ``positions`` is bad, or was never made, the one before it counts.
        """
        found = []
        for k in ended.nonzero().squeeze(-1).tolist():
            place = self.positions
            if bool(bad[k]) or not fitted:
                place = self.before if int(self.steps[k]) else self.origin
            first = sum(self.sizes[:k])
            diverged = bool(bad[k] | self.strayed[k])
            outcome = Outcome(
                key=self.keys[k],
                positions=place[first : first + self.sizes[k]].to("cpu", non_blocking=True),
                converged=bool(done[k]) and not diverged,
                diverged=diverged,
                fitted=fitted,
                steps=int(self.steps[k]),
                evaluations=int(self.evaluations[k]),
                residual=float(self.residual[k]),
            )
            found.append(outcome)
        return found

    def _move(self, forces: Tensor, plain: Tensor | None, strayed: Tensor, left: Tensor) -> Flight:
        """One displacement [n, 3]: ``plain`` in the guidance, the solver's afterwards.

        ``strayed`` [s] stay where they are; ``left`` [s] are the guidance steps still to go.
        """
        batch, guiding = self.operator.structures.batch, self.guiding > 0
        if plain is None or not bool(guiding.any()):
            move = self.solver.propose(self.operator, self.positions, forces)
        elif bool(guiding.all()):
            move = plain
        else:
            # The solver sees no forces where its turn has not come; it is started anew then.
            plainly = to_device(guiding, batch.device)[batch, None]
            own = torch.where(plainly, 0.0, forces)
            move = self.solver.propose(self.operator, self.positions, own)
            move = torch.where(plainly, plain, move)
        if bool(strayed.any()):
            move = torch.where(to_device(strayed, batch.device)[batch, None], 0.0, move)
        moved = replace(
            self,
            positions=self.positions + move,
            before=self.positions,
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
        new = replace(new, solver=solver, origin=new.positions, before=new.positions)
        return new if bool(ready.all()) else self.select(~ready).join([new])
