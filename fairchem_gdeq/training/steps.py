"""The two halves of a training step: the signal's gradient, and the optimizer's step with it.

Both trainers and ``fairchem_gdeq.finetune`` call these two.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairchem_gdeq.evaluation.task import Batch, labels_of
from fairchem_gdeq.relax import Operator, Signal, SignalReport
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.gradients import average_over_ranks


@dataclass(frozen=True)
class LearntStep:
    """A step that is trained beside the model: alpha itself, or what decodes its factor.

    Attributes:
        parameters: the scalar alpha, Angstrom per (eV/Angstrom), or those of a ``StepDecoder``.
        optimizer: of them alone.
        least: what alpha is held above; None for a decoder.
    """

    parameters: Sequence[Tensor]
    optimizer: torch.optim.Optimizer
    least: float | None


@dataclass(frozen=True)
class Update:
    """What became of a gradient.

    Attributes:
        norm: of the parameters' gradient, before it was clipped.
        applied: False if no gradient was there, or one is not finite: nothing has moved.
        share: what the signal's gradient was multiplied by to go with that of the forces; 1 without.
    """

    norm: Tensor
    applied: bool
    share: float = 1.0


@dataclass(frozen=True)
class Beside:
    """A second loss in a step.

    Attributes:
        differentiate: adds its gradient to the parameters' ``.grad``, weighted.
        limit: longest gradient of the signal, in lengths of this one; infinite for none.
    """

    differentiate: Callable[[], None]
    limit: float


def differentiate(
    signal: Signal, operator: Operator, batch: Batch, adjoints: Adjoints | None = None
) -> SignalReport:
    """Add the signal's gradient for one batch to the parameters' ``.grad``.

    Args:
        signal: the training signal.
        operator: G of the batch, its context frozen at ``batch.pos``.
        batch: starts, and targets in ``pos_relaxed``.
        adjoints: those of earlier visits, to start from; they are kept up to date. None: there are
            no later visits.

    Raises:
        ValueError: the batch does not say which rows it holds.
    """
    where = ([label.row for label in labels_of(batch)], batch.natoms.tolist())
    guess = None if adjoints is None else adjoints.recall(*where, batch.pos)
    report = signal(operator, batch.pos, batch.pos_relaxed, guess)
    if adjoints is not None:
        adjoints.keep(*where, report)
    return report


def update(
    parameters: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    count: int,
    *,
    clip: float = float("inf"),
    step: LearntStep | None = None,
    proximal: Callable[[], None] | None = None,
    beside: Beside | None = None,
    rescale: Callable[[], None] | None = None,
    ema: Callable[[], None] | None = None,
) -> Update:
    """Average gradients over the structures of all ranks, clip them, step, and follow with the EMA.

    A gradient that is not finite is thrown away, and the log says so. Weights that are not finite after
    the step end the run: nothing brings them back.

    Args:
        parameters: of the model.
        optimizer: theirs.
        count: structures of this rank in the step.
        clip: longest gradient, all parameters together.
        step: of the relaxation, where it is trained; its gradient is not clipped.
        proximal: called after the optimizer's step, to hold the weights near others.
        beside: a loss whose gradient goes with that of the signal.
        rescale: called before clipping, to change gradients in place.
        ema: called after the step.

    Raises:
        ValueError: the step has made weights that are not finite.
    """
    parameters = list(parameters)
    own = [] if step is None else list(step.parameters)
    reached = average_over_ranks([*parameters, *own], count)
    of_step = {id(p) for p in own}
    found = [p for p in reached if id(p) not in of_step]
    share = 1.0
    if beside is not None:
        parameters = [p for p in parameters if p.requires_grad]
        found, share = _together(parameters, found, beside)
    if rescale is not None:
        rescale()
    norm = nn.utils.clip_grad_norm_(found, clip)
    finite = torch.isfinite(norm)
    for p in own:
        if p.grad is not None:
            finite = finite & torch.isfinite(p.grad).all()
    applied = bool(found) and bool(finite)
    if applied:
        optimizer.step()
        _require_finite(found, optimizer)
        if step is not None:
            step.optimizer.step()
        if step is not None and step.least is not None:
            # Projected, not learnt as a logarithm: its rate stays a length per force, and Adam's
            # state that of older checkpoints. At zero, nothing would move, and at less, uphill.
            with torch.no_grad():
                for p in own:
                    p.clamp_(min=step.least)
        if proximal is not None:
            proximal()
        if ema is not None:
            ema()
    else:
        why = "is not finite" if found else "reaches no parameter that is trained"
        logging.warning(f"the gradient {why}: no update in this step")
    optimizer.zero_grad(set_to_none=True)
    if step is not None:
        step.optimizer.zero_grad(set_to_none=True)
    return Update(norm, applied, share)


def _require_finite(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Refuse what a step has made of the weights; their norm costs as much as that of the gradient.

    Raises:
        ValueError: they are not finite.
    """
    if bool(torch.isfinite(nn.utils.get_total_norm([p.detach() for p in parameters]))):
        return
    rates = ", ".join(f"{float(group['lr']):g}" for group in optimizer.param_groups)
    raise ValueError(
        "the weights are not finite after a step of the optimizer, of which the gradient was: expected a "
        f"smaller step. Its learning rate is {rates}; lower lr, or mend the schedule or the options of "
        "the optimizer. The checkpoints in the run's folder are of earlier steps"
    )


def _together(
    parameters: list[Tensor], reached: list[Tensor], beside: Beside
) -> tuple[list[Tensor], float]:
    """Gradients of both losses in ``.grad``: all parameters that any reaches, and the signal's factor.

    A signal's gradient that is not finite is left out; the other goes on alone, as it does where the
    signal has none.
    """
    signal = {p: p.grad for p in reached if p.grad is not None}
    for p in reached:
        p.grad = None
    beside.differentiate()
    found = average_over_ranks(parameters, 1)  # the mean over ranks, as in fairchem's own training
    ours, theirs = (
        nn.utils.get_total_norm([g for g in grads if g is not None])
        for grads in (signal.values(), [p.grad for p in found])
    )
    share = 0.0
    if not signal:
        return found, share  # every structure was spared
    if bool(torch.isfinite(ours)):
        share = 1.0
        if math.isfinite(beside.limit):
            share = min(1.0, beside.limit * float(theirs) / max(float(ours), 1e-30))
        for p, grad in signal.items():
            p.grad = share * grad if p.grad is None else p.grad + share * grad
    else:
        logging.warning("the signal's gradient is not finite: this step is one of the forces alone")
    known = {id(p) for p in found}
    return [*found, *(p for p in signal if share and id(p) not in known)], share
