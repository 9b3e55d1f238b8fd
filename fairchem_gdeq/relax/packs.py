"""Structures being relaxed together, each at its own stage: guidance steps, then the solver.

This is the one loop of every relaxation: ``solve`` is a pack that nothing enters, ``batching.streams``
one into which the next structures enter where others have left. What happens to a structure does not
depend on its companions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.causes import Cause, cause_of_length, cause_of_steps, has_diverged
from fairchem_gdeq.relax.guidance import out_of_bounds
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_max_norm, to_device, to_host
from fairchem_gdeq.relax.settings import Relaxer
from fairchem_gdeq.relax.solvers import SolverState

MAX_FORCE = 1e3  # eV/Angstrom: a structure with a larger force has diverged
MAX_TRAVEL = 10.0  # Angstrom: so has one with an atom further from where the solver began
ATOM = ("positions", "origin", "before", "before_forces", "before_raw", "velocity")  # on the device
STRUCTURE = (  # on the host
    *("guiding", "guidance_cause", "steps", "evaluations", "residual"),
    *("lowest", "lowest_at"),
)


@dataclass(frozen=True)
class Evaluation:
    """Forces of a pack [n, 3], eV/Angstrom: ``raw`` as the field gives them, and projected."""

    raw: Tensor
    forces: Tensor


@dataclass(frozen=True)
class Ended:
    """Structures that have left a pack; errors are values here.

    Attributes:
        keys: k names.
        sizes: their numbers of atoms.
        positions: [m, 3] X*, Angstrom; the best finite ones of those that diverged.
        forces: [m, 3] there, eV/Angstrom; zero where never known.
        removed: [k] largest force on an atom that the projection took out there, eV/Angstrom.
        converged: [k] bool, max|F_free| < fmax, and not diverged on the way; this and what follows on
            the host.
        cause: [k] int8, the ``Cause`` where it has not converged.
        steps: [k] displacements by the solver.
        evaluations: [k] force evaluations.
        residual: [k] max|F_free| at ``positions``, eV/Angstrom; infinite where never known.
    """

    keys: list[int]
    sizes: tuple[int, ...]
    positions: Tensor
    forces: Tensor
    removed: Tensor
    converged: Tensor
    cause: Tensor
    steps: Tensor
    evaluations: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Pack:
    """One or more structures under way.

    Attributes:
        keys: s names.
        operator: G on the s structures.
        state: the solver's, meaningful only for structures past their guidance.
        positions: [n, 3] where the next force evaluation takes place, Angstrom.
        origin: [n, 3] where the solver began.
        before: [n, 3] where the last evaluation of the solver took place.
        before_forces, before_raw: [n, 3] what it gave; zero where there was none.
        velocity: [n, 3] of the last plain step, eV/Angstrom; None for a descent without momentum.
        guiding: [s] guidance steps still to go; this and what follows on the host.
        guidance_cause: [s] int8, not ``NONE`` where it diverged in its guidance: the solver began at the
            last sound positions.
        steps, evaluations, residual: [s] as in ``Ended``.
        lowest, lowest_at: [s] the lowest residual of the solver, and after how many of its steps.
    """

    keys: list[int]
    operator: Operator
    state: SolverState
    positions: Tensor
    origin: Tensor
    before: Tensor
    before_forces: Tensor
    before_raw: Tensor
    velocity: Tensor | None
    guiding: Tensor
    guidance_cause: Tensor
    steps: Tensor
    evaluations: Tensor
    residual: Tensor
    lowest: Tensor
    lowest_at: Tensor

    @classmethod
    def begin(cls, keys: list[int], operator: Operator, start: Tensor, relaxer: Relaxer) -> Pack:
        """Structures at their start [n, 3]."""
        start, zero = start.detach(), torch.zeros(len(keys), dtype=torch.long)
        none = torch.zeros_like(start)
        unknown = torch.full((len(keys),), torch.inf, dtype=torch.float64)
        return cls(
            keys=keys,
            operator=operator,
            state=relaxer.solver.start(operator, start),
            positions=start,
            origin=start,
            before=start,
            before_forces=none,
            before_raw=none,
            velocity=operator.descent.rest(start),
            guiding=zero + relaxer.horizon,
            guidance_cause=zero.to(torch.int8),
            steps=zero,
            evaluations=zero,
            residual=unknown,
            lowest=unknown,
            lowest_at=zero,
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of atoms of each structure."""
        return self.operator.structures.sizes

    @property
    def _per_atom(self) -> tuple[str, ...]:
        """Names of what there is of each atom; the same in all packs of one operator."""
        return ATOM if self.velocity is not None else ATOM[:-1]

    def select(self, structures: Tensor) -> Pack:
        """The structures where the mask [s], on the host, holds."""
        if bool(structures.all()):
            return self
        atoms = self.operator.structures.atoms_of(structures)
        rows = structures.nonzero().squeeze(-1)
        return replace(
            self,
            keys=[self.keys[k] for k in rows.tolist()],
            operator=self.operator.select(structures),
            state=self.state.select(to_device(rows, atoms.device), atoms),
            **{name: getattr(self, name)[atoms] for name in self._per_atom},
            **{name: getattr(self, name)[structures] for name in STRUCTURE},
        )

    def join(self, others: Sequence[Pack]) -> Pack:
        """The structures of this pack followed by those of ``others``."""
        if not others:
            return self
        parts = [self, *others]
        return replace(
            self,
            keys=[key for part in parts for key in part.keys],
            operator=self.operator.join([other.operator for other in others]),
            state=self.state.join([other.state for other in others]),
            **{
                name: torch.cat([getattr(part, name) for part in parts])
                for name in (*self._per_atom, *STRUCTURE)
            },
        )

    def evaluate(self) -> Evaluation:
        """Forces at ``positions``."""
        raw = self.operator.field(self.positions)
        return Evaluation(raw, self.operator.project(raw, self.positions))

    def advance(self, now: Evaluation, relaxer: Relaxer) -> tuple[Ended | None, Pack | None]:
        """Use the forces at ``positions``: those that ended, and the rest one step further."""
        s, guiding = self.operator.structures, self.guiding > 0
        asked = [
            segment_max_norm(now.forces, s.batch, s.count),
            segment_max_norm(self.positions - self.origin, s.batch, s.count),
        ]
        plain, velocity, astray = None, self.velocity, torch.zeros_like(guiding)
        astray_for = self.guidance_cause
        if bool(guiding.any()):
            made = relaxer.horizon - self.guiding
            at = self.positions
            plain, velocity = self.operator.plain_step(at, now.forces, velocity, made)
            asked.append(segment_max_norm(plain, s.batch, s.count))
        force, travel, *longest = to_host(*asked)
        if longest:
            astray = guiding & out_of_bounds(longest[0])
            astray_for = torch.where(astray, cause_of_length(longest[0]), astray_for)
        bad = ~guiding & (~(force < MAX_FORCE) | ~(travel < MAX_TRAVEL))
        done = ~guiding & (force < relaxer.fmax) & ~bad
        ended = done | bad | (~guiding & (self.steps >= relaxer.max_steps))
        # A structure whose forces are below fmax needs no more guidance than this step.
        left = torch.where(astray | (force < relaxer.fmax), 0, (self.guiding - 1).clamp_min(0))
        lower = ~guiding & (force < self.lowest)
        here = replace(
            self,
            velocity=velocity,
            guidance_cause=astray_for,
            lowest=torch.where(lower, force, self.lowest),
            lowest_at=torch.where(lower, self.steps, self.lowest_at),
            evaluations=self.evaluations + 1,
            residual=torch.where(guiding | bad, self.residual, force),
        )
        if relaxer.one_shot:
            shot, nothing = here._move(now, plain, astray, left, relaxer), torch.zeros_like(astray)
            return shot._ended(now, nothing, nothing, ~nothing, shot.guidance_cause), None
        if not bool(ended.any()):
            return None, here._move(now, plain, astray, left, relaxer)
        cause = here.guidance_cause
        if not bool(done.all()):
            late = torch.where(done, int(Cause.NONE), cause_of_steps(here.steps, here.lowest_at))
            wrong = torch.where(bad, cause_of_length(torch.maximum(force, travel)), late)
            cause = torch.where(cause != Cause.NONE, cause, wrong)
        leaving = here._ended(now, done, bad, ended, cause)
        if bool(ended.all()):
            return leaving, None
        going, atoms = ~ended, s.atoms_of(~ended)
        here, now = here.select(going), Evaluation(now.raw[atoms], now.forces[atoms])
        plain = None if plain is None else plain[atoms]
        return leaving, here._move(now, plain, astray[going], left[going], relaxer)

    def _ended(
        self, now: Evaluation, done: Tensor, bad: Tensor, ended: Tensor, cause: Tensor
    ) -> Ended:
        """Where the mask ``ended`` [s] holds; where ``bad`` [s] holds the evaluation before counts.

        ``cause`` [s] is why it is not ``done``.
        """
        s = self.operator.structures
        atoms, rows = s.atoms_of(ended), ended.nonzero().squeeze(-1)
        batch, kept = s.batch[atoms], to_device(rows, atoms.device)
        last = (self.before, self.before_forces, self.before_raw)
        state = [each[atoms] for each in (self.positions, now.forces, now.raw)]
        if bool(bad.any()):
            worse = to_device(bad, atoms.device)[batch, None]
            state = [
                torch.where(worse, old[atoms], new) for old, new in zip(last, state, strict=True)
            ]
        positions, forces, raw = state
        taken = torch.where(s.free[atoms, None], raw - forces, 0.0)
        return Ended(
            keys=[self.keys[k] for k in rows.tolist()],
            sizes=tuple(self.sizes[k] for k in rows.tolist()),
            positions=positions,
            forces=forces,
            removed=segment_max_norm(taken, batch, s.count)[kept],
            converged=(done & ~has_diverged(cause))[ended],
            cause=cause[ended],
            steps=self.steps[ended],
            evaluations=self.evaluations[ended],
            residual=self.residual[ended],
        )

    def _move(
        self, now: Evaluation, plain: Tensor | None, astray: Tensor, left: Tensor, relaxer: Relaxer
    ) -> Pack:
        """One displacement [n, 3]: ``plain`` in the guidance, the solver's afterwards.

        ``astray`` [s] stay where they are; ``left`` [s] are the guidance steps still to go.
        """
        batch, guiding = self.operator.structures.batch, self.guiding > 0
        solver, state, forces = relaxer.solver, self.state, now.forces
        if plain is None or not bool(guiding.any()):
            move, state = solver.propose(self.operator, self.positions, forces, state)
        elif bool(guiding.all()):
            move = plain
        else:
            # The solver sees no forces where its turn has not come; it is started anew then.
            plainly = to_device(guiding, batch.device)[batch, None]
            own = torch.where(plainly, 0.0, forces)
            move, state = solver.propose(self.operator, self.positions, own, state)
            move = torch.where(plainly, plain, move)
        if bool(astray.any()):
            move = torch.where(to_device(astray, batch.device)[batch, None], 0.0, move)
        moved = replace(
            self,
            state=state,
            positions=self.positions + move,
            before=self.positions,
            before_forces=now.forces,
            before_raw=now.raw,
            guiding=left,
            steps=self.steps + (~guiding).long(),
        )
        return moved._hand_over(guiding & (left == 0), relaxer)

    def _hand_over(self, ready: Tensor, relaxer: Relaxer) -> Pack:
        """The solver begins with the structures where the mask [s] holds; they come last then."""
        if not bool(ready.any()):
            return self
        new = self.select(ready)
        none = torch.zeros_like(new.positions)
        new = replace(
            new,
            state=relaxer.solver.start(new.operator, new.positions),
            origin=new.positions,
            before=new.positions,
            before_forces=none,
            before_raw=none,
        )
        return new if bool(ready.all()) else self.select(~ready).join([new])
