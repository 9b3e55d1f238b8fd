"""Algorithm 1 and the training signals it is compared with.

Each signal adds its parameter gradient to ``.grad`` and returns a ``SignalReport``. The gradients of
the two phases are decoupled (eq. 5): the equilibrium phase starts from a detached X_K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.relax.adjoint import ADJOINTS
from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS
from fairchem_gdeq.relax.objective import delta_q, rigid_shift
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.relax.solvers import make_solver, solve


@dataclass(frozen=True)
class Method:
    """Everything that decides a training step besides the model and the data.

    Attributes:
        horizon: K, steps of the guidance window.
        lambda_guide, lambda_eq: weights of eq. 5.
        guidance_gradient: ``sweep`` (constant memory) or ``stored_graph`` (reference).
        max_unroll: T_max of the ``bptt`` signal.
        solver: name and options of the equilibrium solver.
        fmax: convergence of the equilibrium, eV/Angstrom; a rollout masks a structure below it too.
        max_steps: displacements allowed to the solver.
        hold_graph: keep the graph built at X_K through the whole equilibrium solve and the adjoint.
            By default the solve works on a fresh graph, so that its X* is a fixed point of the
            potential itself, and only the adjoint holds one, that of X*.
        adjoint: ``gmres``, ``neumann`` or ``identity``.
        adjoint_tol: relative residual asked of it.
        max_vjps: VJPs allowed to it per structure.
        adjoint_damping: mu, see ``adjoint``; 0 is the exact implicit gradient.
    """

    horizon: int = 20
    lambda_guide: float = 1.0
    lambda_eq: float = 1.0
    guidance_gradient: str = "sweep"
    max_unroll: int = 75
    solver: str = "lbfgs"
    solver_options: dict[str, Any] = field(default_factory=dict)
    fmax: float = 0.01
    max_steps: int = 200
    hold_graph: bool = False
    adjoint: str = "gmres"
    adjoint_tol: float = 1e-2
    max_vjps: int = 60
    adjoint_damping: float = 0.0

    def __post_init__(self) -> None:
        """Refuse names and numbers that cannot be meant.

        Raises:
            ValueError: with the key, what was found and what is expected.
        """
        for key, known in (("guidance_gradient", GUIDANCE_GRADIENTS), ("adjoint", ADJOINTS)):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"{key}={getattr(self, key)!r}: expected one of {', '.join(known)}"
                )
        make_solver(self.solver, **self.solver_options)
        for key in ("horizon", "max_unroll", "max_steps", "max_vjps"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: expected a number >= 0")
        for key in (
            "lambda_guide",
            "lambda_eq",
            "fmax",
            "adjoint_tol",
            "adjoint_damping",
        ):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: expected a number >= 0")


@dataclass(frozen=True)
class SignalReport:
    """What a training step saw, for every structure of the batch.

    Attributes:
        loss: value of eq. 5 over the structures that contributed.
        guided: [s] Delta Q at X_K (at X_0 where K = 0).
        relaxed: [s] Delta Q at X*; NaN where not solved.
        diverged: [s] bool, in the rollout or the solve; contributes nothing.
        converged: [s] bool, the equilibrium solve reached fmax.
        contributing: [s] bool, the equilibrium gradient was used: converged and adjoint solved.
        unbounded: [s] bool, the adjoint was longer than damping promises, and was not used.
        residual: [s] max|F_free| at X*, eV/Angstrom; NaN where not solved.
        adjoint_residual: [s] relative; NaN where not solved.
        adjoint: [n, 3] u, a warm start for the next visit; zero where not solved.
        evaluations: [s] force evaluations without gradient.
        vjps: [s] forward-and-backward pairs.
        handoff: [n, 3] X_K, Angstrom.
        positions: [n, 3] X*, Angstrom (X_K where not solved).
        removed: [s] largest force on an atom that was taken out at X* as net force or torque,
            eV/Angstrom; NaN where not solved.
        shift: [s] rigid shift that was taken out of Delta Q at X* (X_K where not solved), Angstrom.
    """

    loss: float
    guided: Tensor
    relaxed: Tensor
    diverged: Tensor
    converged: Tensor
    contributing: Tensor
    unbounded: Tensor
    residual: Tensor
    adjoint_residual: Tensor
    adjoint: Tensor
    evaluations: Tensor
    vjps: Tensor
    handoff: Tensor
    positions: Tensor
    removed: Tensor
    shift: Tensor


def _guide(
    operator: Operator, start: Tensor, target: Tensor, method: Method, horizon: int
) -> SignalReport:
    """Phase 1: roll out ``horizon`` steps and add lambda_guide's gradient."""
    path, losses, total = GUIDANCE_GRADIENTS[method.guidance_gradient](
        operator,
        start,
        horizon,
        lambda x: delta_q(x, target, operator.structures, operator.pin),
        method.lambda_guide,
        method.fmax,
    )
    unknown = torch.full_like(losses, torch.nan)
    none = torch.zeros_like(path.diverged)
    return SignalReport(
        loss=total,
        guided=losses,
        relaxed=unknown,
        diverged=path.diverged,
        converged=none,
        contributing=none,
        unbounded=none,
        residual=unknown,
        adjoint_residual=unknown,
        adjoint=torch.zeros_like(start),
        evaluations=path.evaluations,
        vjps=torch.where(path.diverged, 0, path.evaluations),
        handoff=path.positions,
        positions=path.positions,
        removed=unknown,
        shift=rigid_shift(path.positions, target, operator.structures, operator.pin),
    )


def _settle(
    operator: Operator, target: Tensor, method: Method, guess: Tensor | None, report: SignalReport
) -> SignalReport:
    """Phases 2 and 3 from the detached hand-off state; adds lambda_eq's gradient to ``report``."""
    device = target.device
    alive = ~report.diverged.cpu()
    if not bool(alive.any()):
        return report
    rows = to_device(alive.nonzero().squeeze(-1), device)
    atoms, sub = operator.structures.atoms_of(alive), operator.select(alive)
    sub = sub.freeze(report.handoff[atoms]) if method.hold_graph else sub.unfreeze()
    solver = make_solver(method.solver, **method.solver_options)
    found = solve(sub, report.handoff[atoms], solver, method.fmax, method.max_steps)
    if not method.hold_graph:
        sub = sub.freeze(found.positions)

    with torch.enable_grad():
        x = found.positions.detach().requires_grad_(True)
        losses = delta_q(x, target[atoms], sub.structures, sub.pin)
        share = found.converged.to(losses.dtype) * (method.lambda_eq / operator.structures.count)
        (g,) = torch.autograd.grad(losses, x, share)
    losses = losses.detach()

    usable = found.converged.cpu()
    solved, mine = to_device(usable.nonzero().squeeze(-1), device), sub.structures.atoms_of(usable)
    used, at = sub.select(usable), found.positions[mine]
    answer = ADJOINTS[method.adjoint](
        used,
        at,
        g[mine],
        tol=method.adjoint_tol,
        max_vjps=method.max_vjps,
        guess=None if guess is None else guess[atoms[mine]],
        damping=method.adjoint_damping,
    )
    good = answer.converged.cpu()
    if bool(good.any()):
        kept = used.structures.atoms_of(good)
        used.select(good).vjp(at[kept], answer.u[kept], accumulate=True)

    where = rows[solved]
    used_loss = torch.where(answer.converged, (share * losses)[solved], 0.0).sum()
    shift = rigid_shift(found.positions, target[atoms], sub.structures, sub.pin)
    return replace(
        report,
        loss=report.loss + float(used_loss),
        relaxed=report.relaxed.index_copy(0, rows, losses),
        diverged=report.diverged.index_copy(0, rows, found.diverged),
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


def gdeq(
    operator: Operator,
    start: Tensor,
    target: Tensor,
    method: Method,
    guess: Tensor | None = None,
) -> SignalReport:
    """Algorithm 1: guidance over K steps, equilibrium solve, implicit gradient (eq. 5).

    Args:
        operator: G with its context frozen at ``start``.
        start: [n, 3] X_0, Angstrom.
        target: [n, 3] X_gt, Angstrom.
        method: horizon, weights, solver, adjoint.
        guess: [n, 3] adjoint of an earlier visit, to start the adjoint solve from.
    """
    report = _guide(operator, start, target, method, method.horizon)
    return _settle(operator, target, method, guess, report)


def bptt(
    operator: Operator,
    start: Tensor,
    target: Tensor,
    method: Method,
    guess: Tensor | None = None,
) -> SignalReport:
    """Full unroll (BPTT paper, eq. 3-4): at most T_max steps, stopped where forces are below fmax."""
    return _guide(operator, start, target, method, method.max_unroll)


def truncated_bptt(
    operator: Operator,
    start: Tensor,
    target: Tensor,
    method: Method,
    guess: Tensor | None = None,
) -> SignalReport:
    """Guidance alone: the ablation lambda_eq = 0."""
    return _guide(operator, start, target, method, method.horizon)


def implicit(
    operator: Operator,
    start: Tensor,
    target: Tensor,
    method: Method,
    guess: Tensor | None = None,
) -> SignalReport:
    """Equilibrium alone: the ablation K = 0."""
    report = _guide(operator, start, target, replace(method, lambda_guide=0.0), 0)
    return _settle(operator, target, method, guess, report)


SIGNALS: dict[str, Callable[..., SignalReport]] = {
    "gdeq": gdeq,
    "bptt": bptt,
    "truncated_bptt": truncated_bptt,
    "implicit": implicit,
}
