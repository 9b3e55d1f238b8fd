"""Phases 2 and 3 of Algorithm 1, for the signals that have them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.relax.adjoints import ADJOINTS, GMRES, Adjoint
from fairchem_gdeq.relax.equilibrium import Solution, solve, without_collapsed
from fairchem_gdeq.relax.linearised import Linearised
from fairchem_gdeq.relax.loss import LOSSES, DeltaQ, Loss, delta_q, rigid_shift, weighted_mean
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.relax.signals.base import SignalReport
from fairchem_gdeq.relax.solvers import LBFGS, SOLVERS, Solver


@dataclass(frozen=True)
class Equilibrium:
    """X* of the structures that phase 1 has not lost.

    Attributes:
        operator: G of those structures as the solve had it.
        rows: their indices in the whole batch.
        atoms: those of their atoms.
        solution: X*, and how it was reached.
    """

    operator: Operator
    rows: Tensor
    atoms: Tensor
    solution: Solution


@dataclass(frozen=True, kw_only=True)
class Equilibrated:
    """Settings and gradient of the equilibrium.

    Attributes:
        lambda_eq: their weight in eq. 5.
        solver: of the equilibrium; a solver, its name, or a mapping with ``name`` and options.
        fmax: its convergence, eV/Angstrom.
        max_steps: displacements allowed to it.
        hold_graph: keep the graph built at X_K through the whole equilibrium solve and the adjoint.
            By default the solve works on a fresh graph, so that its X* is a fixed point of the
            potential itself, and only the adjoint holds one, that of X*.
        adjoint: of eq. 4; an adjoint, its name, or a mapping with ``name`` and options.
        loss: of X*; a loss or its name.
        spare: a structure whose X* is nearer to its target than this (Delta Q, amu^0.5 Angstrom) is
            not differentiated; 0 differentiates all.
    """

    lambda_eq: float = 1.0
    solver: Solver[Any] = field(default_factory=LBFGS)
    fmax: float = 0.02
    max_steps: int = 200
    hold_graph: bool = False
    adjoint: Adjoint = field(default_factory=GMRES)
    loss: Loss = field(default_factory=DeltaQ)
    spare: float = 0.0

    def __post_init__(self) -> None:
        """Make what is given by its name.

        Raises:
            ValueError: a name, option or number that cannot be meant; says which.
        """
        object.__setattr__(self, "solver", SOLVERS.make(self.solver))
        object.__setattr__(self, "adjoint", ADJOINTS.make(self.adjoint))
        object.__setattr__(self, "loss", LOSSES.make(self.loss))
        require_not_negative(lambda_eq=self.lambda_eq, fmax=self.fmax, max_steps=self.max_steps)
        require_not_negative(spare=self.spare)

    def settle(
        self, operator: Operator, target: Tensor, guess: Tensor | None, report: SignalReport
    ) -> SignalReport:
        """From the detached hand-off state; adds lambda_eq's gradient to ``report``."""
        found = self.equilibrium(operator, report)
        if found is None:
            return report
        return self.sharpen(found, target, guess, self.judge(found, target, report))

    def equilibrium(self, operator: Operator, report: SignalReport) -> Equilibrium | None:
        """Phase 2, from X_K of what has not diverged; None if everything has."""
        alive = ~report.diverged.cpu()
        if not bool(alive.any()):
            return None
        rows = to_device(alive.nonzero().squeeze(-1), report.handoff.device)
        atoms, sub = operator.structures.atoms_of(alive), operator.select(alive)
        sub = sub.freeze(report.handoff[atoms]) if self.hold_graph else sub.unfreeze()
        found = solve(sub, report.handoff[atoms], self.solver, self.fmax, self.max_steps)
        found = without_collapsed(found, sub.structures)
        return Equilibrium(sub, rows, atoms, found)

    def judge(self, settled: Equilibrium, target: Tensor, report: SignalReport) -> SignalReport:
        """Say in ``report`` how far X* is from the targets, and which structures are spared."""
        sub, found = settled.operator, settled.solution
        distance = delta_q(found.positions, target[settled.atoms], sub.structures, sub.pin)
        right = found.converged & (distance < self.spare)
        return replace(
            report,
            relaxed=report.relaxed.index_copy(0, settled.rows, distance),
            spared=report.spared.index_copy(0, settled.rows, right),
        )

    def sharpen(
        self,
        settled: Equilibrium,
        target: Tensor,
        guess: Tensor | None,
        report: SignalReport,
    ) -> SignalReport:
        """Phase 3, of structures that have converged and that ``report`` does not say are spared."""
        sub, rows, atoms, found = settled.operator, settled.rows, settled.atoms, settled.solution
        count, device = len(report.cause), target.device
        wanted = found.converged & ~report.spared[rows]
        with torch.enable_grad():
            x = found.positions.detach().requires_grad_(True)
            losses = self.loss(x, target[atoms], sub.structures, sub.pin)
            (g,) = torch.autograd.grad(weighted_mean(losses, wanted, self.lambda_eq, count), x)
        losses = losses.detach()

        usable = wanted.cpu()
        solved = to_device(usable.nonzero().squeeze(-1), device)
        mine = sub.structures.atoms_of(usable)
        at = found.positions[mine]
        used = sub.select(usable)
        if bool(usable.any()) and not self.hold_graph:
            used = used.freeze(at)
        used = Linearised.at(used, at)
        answer = self.adjoint(used, at, g[mine], None if guess is None else guess[atoms[mine]])
        good = answer.converged.cpu()
        if bool(good.any()):
            kept = used.structures.atoms_of(good)
            used.select(good).vjp(at[kept], answer.u[kept], accumulate=True)

        where = rows[solved]
        value = weighted_mean(losses[solved], answer.converged, self.lambda_eq, count)
        shift = rigid_shift(found.positions, target[atoms], sub.structures, sub.pin)
        return replace(
            report,
            loss=report.loss + float(value),
            cause=report.cause.index_copy(0, rows, found.cause),
            converged=report.converged.index_copy(0, rows, found.converged),
            contributing=report.contributing.index_copy(0, where, answer.converged),
            unbounded=report.unbounded.index_copy(0, where, answer.unbounded),
            residual=report.residual.index_copy(0, rows, found.residual),
            adjoint_residual=report.adjoint_residual.index_copy(0, where, answer.residual),
            adjoint=report.adjoint.index_copy(0, atoms[mine], answer.u),
            evaluations=report.evaluations.index_add(0, rows, found.evaluations),
            vjps=report.vjps.index_add(0, where, answer.vjps + answer.converged.long()),
            positions=report.positions.index_copy(0, atoms, found.positions),
            removed=report.removed.index_copy(0, rows, found.removed),
            shift=report.shift.index_copy(0, rows, shift),
        )
