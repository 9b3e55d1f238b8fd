"""Phase 1 of Algorithm 1: the K-step guidance rollout and its exact gradient (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.application import Application
from fairchem_gdeq.relax.causes import cause_of_length, has_diverged
from fairchem_gdeq.relax.kept import Window
from fairchem_gdeq.relax.loss import weighted_mean
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_max_norm, to_device, to_host

LONGEST_STEP = 10.0  # Angstrom: a plain step that moves an atom further is no relaxation any more


@dataclass(frozen=True)
class Rollout:
    """X_0 ... X_K, and of the last steps the autograd graphs that there was memory for.

    Attributes:
        steps: the plain steps, in order.
        positions: [n, 3] X_K, Angstrom; a diverged structure stays at its last good positions.
        settled: [s] bool, structures masked because their forces fell below the threshold.
        cause: [s] int8, the ``Cause`` why structures were taken out.
        evaluations: [s] force evaluations spent on each structure.
        gone: [s] bool on the host, those that were: they are not differentiated.
    """

    steps: list[Application]
    positions: Tensor
    settled: Tensor
    cause: Tensor
    evaluations: Tensor
    gone: Tensor

    @property
    def diverged(self) -> Tensor:
        """[s] bool, ``gone`` on the device."""
        return has_diverged(self.cause)


def out_of_bounds(longest: Tensor) -> Tensor:
    """Where the longest step of an atom [s] (Angstrom) is not finite or absurdly long."""
    return ~(longest < LONGEST_STEP)


def rollout(
    operator: Operator, start: Tensor, horizon: int, fmax: float = 0.0, memory: int = 0
) -> Rollout:
    """Take ``horizon`` plain steps, keeping only positions: n x 3 per step, besides ``memory``.

    With momentum, velocities are kept too.

    Args:
        operator: G on the whole batch, and how its steps follow one another.
        start: [n, 3] X_0, Angstrom.
        horizon: K.
        fmax: a structure whose largest force (eV/Angstrom) is below this is masked after that step.
        memory: bytes that graphs of the last steps may take, for ``sweep``.
    """
    return _roll(operator, start, horizon, fmax, graph=False, memory=memory)[0]


def _roll(
    operator: Operator, start: Tensor, horizon: int, fmax: float, graph: bool, memory: int = 0
) -> tuple[Rollout, Tensor]:
    """The rollout; with ``graph`` the second value is X_K with its stored autograd graph."""
    s = operator.structures
    settled = torch.zeros(s.count, dtype=torch.bool)  # this and the like on the host
    cause = torch.zeros(s.count, dtype=torch.int8)
    evaluations = torch.zeros(s.count, dtype=torch.long)
    moving = torch.arange(s.count)
    active, atoms = operator, torch.arange(len(start), device=start.device)
    steps: list[Application] = []
    window = Window(memory)
    x = start.detach()
    v = operator.descent.rest(x)

    def of_moving(values: Tensor) -> Tensor:
        return values if len(atoms) == len(values) else values[atoms]

    def with_moving(values: Tensor, new: Tensor) -> Tensor:
        return new if len(atoms) == len(values) else values.index_copy(0, atoms, new)

    with torch.set_grad_enabled(graph):
        for number in range(horizon):
            here, before = of_moving(x), None if v is None else of_moving(v)
            done = torch.full((len(moving),), number)
            forces, move, after, kept = window.apply(active, here, before, done)
            evaluations[moving] += 1
            part = active.structures
            longest, force = to_host(
                segment_max_norm(move.detach(), part.batch, part.count),
                segment_max_norm(forces.detach(), part.batch, part.count),
            )
            bad = out_of_bounds(longest)
            if bool(bad.any()):
                cause[moving[bad]] = cause_of_length(longest[bad])
                moving, force = moving[~bad], force[~bad]
                if len(moving) == 0:
                    break
                keep = part.atoms_of(~bad)
                active, atoms, here, move = active.select(~bad), atoms[keep], here[keep], move[keep]
                if before is not None and after is not None:
                    before, after = before[keep], after[keep]
                if kept is not None:
                    kept.release()  # what diverged is in it
            was = None if before is None else before.detach()
            steps.append(Application(active, moving, atoms, here.detach(), was, number, kept))
            x = with_moving(x, here + move)
            if v is not None and after is not None:
                v = with_moving(v, after)
            still = force >= fmax
            if not bool(still.all()):
                settled[moving[~still]] = True
                moving = moving[still]
                if len(moving) == 0:
                    break
                atoms = atoms[active.structures.atoms_of(still)]
                active = active.select(still)
    path = Rollout(
        steps=steps,
        positions=x.detach(),
        settled=to_device(settled, start.device),
        cause=to_device(cause, start.device),
        evaluations=to_device(evaluations, start.device),
        gone=has_diverged(cause),
    )
    return path, x


def sweep(path: Rollout, adjoint: Tensor, counted: Tensor | None = None) -> Tensor:
    """Discrete adjoint of a rollout: exact eq. 3 with one evaluation's activations at a time.

    lam_K = dL/dX_K; for t = K-1 ... 0: lam_t = lam_{t+1}^T dG/dX(X_t), while
    lam_{t+1}^T dG/dtheta(X_t) is added to the parameters' ``.grad``. With momentum the state is
    (X_t, v_{t-1}), and the adjoint of the velocity goes along, from zero at the end. Structures that
    diverged in the end are left out from the beginning: their derivatives may be infinite.

    Args:
        path: the rollout; its memory is K x n x 3, twice that with momentum. Graphs that it kept are
            used up.
        adjoint: [n, 3] dL/dX_K; what it is on structures that are not counted does not matter.
        counted: [s] bool on the host, structures to differentiate; by default all but the diverged.

    Returns:
        [n, 3] dL/dX_0 on free atoms.
    """
    lam = adjoint.clone()
    counted = ~path.gone if counted is None else counted
    if path.steps and not bool(counted.all()):
        first = path.steps[0]
        others = first.operator.structures.atoms_of(~counted[first.structures])
        lam[first.atoms[others]] = 0.0
    # Structures leave at different steps: until its last one, a structure's velocity matters to nothing.
    speed = torch.zeros_like(lam)
    for step in reversed(_survivors(path, counted)):
        carried = None if step.before is None else speed[step.atoms]
        lam[step.atoms], back = step.vjp(lam[step.atoms], carried)
        if back is not None:
            speed[step.atoms] = back
    return lam


def _survivors(path: Rollout, counted: Tensor) -> list[Application]:
    """The steps for the structures where the host mask [s] holds; frees the graphs of no use."""
    if bool(counted.all()):
        return path.steps
    out: list[Application] = []
    before: tuple[Operator | None, Operator | None] = (None, None)
    for step in path.steps:
        stays = counted[step.structures]
        if not bool(stays.any()):
            step.forget()
            continue
        if _worth_all(step, stays, path.gone):
            out.append(step)
            continue
        step.forget()
        if step.operator is not before[0]:  # consecutive steps share theirs
            before = step.operator, step.operator.select(stays)
        assert before[1] is not None
        out.append(step.restricted(before[1], stays))
    return out


def _worth_all(step: Application, stays: Tensor, diverged: Tensor) -> bool:
    """Whether a backward through a kept graph of all of its structures is right, and the cheaper way.

    It costs 2 evaluations of all, against 3 of those that stay. The others have lam = 0, which is
    right unless they diverged later on: 0 times infinity is not zero.
    """
    if not step.kept or bool(diverged[step.structures].any()):
        return False
    sizes = torch.tensor(step.operator.structures.sizes)
    return 2 * int(sizes.sum()) <= 3 * int(sizes[stays].sum())


StructureLoss = Callable[[Tensor], Tensor]
"""Maps positions [n, 3] to one loss per structure [s]."""


def guidance_by_sweep(
    operator: Operator,
    start: Tensor,
    horizon: int,
    loss: StructureLoss,
    weight: float,
    fmax: float = 0.0,
    memory: int = 0,
) -> tuple[Rollout, Tensor, float]:
    """Roll out, then add the gradient of ``weight * mean(loss(X_K))`` by the backward sweep.

    ``memory`` as for ``rollout``: the gradient is the same.

    Returns:
        The rollout, the losses [s] at X_K and the weighted batch mean.
    """
    path = rollout(operator, start, horizon, fmax, memory)
    losses, total = differentiate_path(path, loss, weight, ~path.diverged)
    return path, losses, total


def differentiate_path(
    path: Rollout, loss: StructureLoss, weight: float, counted: Tensor
) -> tuple[Tensor, float]:
    """Add the gradient of ``weight * mean(loss(X_K))`` over the ``counted`` structures [s] of a rollout.

    Returns:
        The losses [s] at X_K and the weighted batch mean.
    """
    with torch.enable_grad():
        x = path.positions.detach().requires_grad_(True)
        losses = loss(x)
        total = weighted_mean(losses, counted, weight, len(counted))
        (lam,) = torch.autograd.grad(total, x)
    sweep(path, lam, counted.cpu())
    return losses.detach(), float(total.detach())


def guidance_by_stored_graph(
    operator: Operator,
    start: Tensor,
    horizon: int,
    loss: StructureLoss,
    weight: float,
    fmax: float = 0.0,
) -> tuple[Rollout, Tensor, float]:
    """The same by autograd through the stored K-step graph: O(K) memory, for reference."""
    path, x = _roll(operator, start, horizon, fmax, graph=True)
    if bool(path.gone.any()):
        # What diverged must leave no trace in the graph (0 * NaN): once more without it.
        alive = ~path.gone
        atoms = operator.structures.atoms_of(alive)
        again = _roll(operator.select(alive), start[atoms], horizon, fmax, graph=True)[1]
        x = path.positions.index_copy(0, atoms, again)
    with torch.enable_grad():
        losses = loss(x)
        total = weighted_mean(losses, ~path.diverged, weight, operator.structures.count)
        if total.requires_grad:
            torch.autograd.backward(total)
    return path, losses.detach(), float(total.detach())


GUIDANCE_GRADIENTS = {"sweep": guidance_by_sweep, "stored_graph": guidance_by_stored_graph}
