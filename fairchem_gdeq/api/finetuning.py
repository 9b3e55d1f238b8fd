"""Fine-tuning from Python: the trainers' step, batches, schedule and averages in a plain loop."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ase import Atoms
from tqdm import tqdm

from fairchem_gdeq.api.evaluating import scoring_of
from fairchem_gdeq.api.forces import Forces
from fairchem_gdeq.api.loop import Batches, Loop
from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import as_list, require_pairs
from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.fairchem2.base import train_only, warn_of_other_heads
from fairchem_gdeq.fairchem2.fields import force_task
from fairchem_gdeq.relax import GDEQ, Relaxer, Signal
from fairchem_gdeq.relax.signals import Direct
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.replay import for_signal

Pairs = tuple[Iterable[Atoms], Iterable[Atoms]]


@dataclass(frozen=True, repr=False)
class Run:
    """What a fine-tuning has led to.

    Attributes:
        best: the potential of the epoch that ``keep`` asks for; where none is good enough, ``base``.
            Without validation structures, the last.
        base: the untrained one, relaxed as ``best`` is; last: that of the last epoch.
        best_epoch: its number.
        history: validation scores of each epoch, from 0 on, by ``epoch``; empty without validation.
            ``against_base`` is how its structures do compared with the base's.
        steps: numbers of each optimizer step.
    """

    best: Potential
    base: Potential
    last: Potential
    best_epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether the best epoch is not the base."""
        return self.best_epoch > 0

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} steps"
        if not self.history:
            return f"Run({steps}, no validation: best is the last epoch, {self.best_epoch})"
        by_epoch = {int(e["epoch"]): e["delta_q_mean"] for e in self.history}
        if not self.improved:
            return f"Run({steps}, best is the base: Delta Q {by_epoch[0]:.3f}; no epoch was better)"
        return (
            f"Run({steps}, best is epoch {self.best_epoch}: validation Delta Q {by_epoch[0]:.3f} -> "
            f"{by_epoch[self.best_epoch]:.3f})"
        )


def finetune(
    potential: Potential,
    starts: Atoms | Iterable[Atoms],
    targets: Atoms | Iterable[Atoms],
    validation: Pairs | None = None,
    *,
    epochs: int = 5,
    lr: float = 1e-5,
    signal: Signal | None = None,
    max_atoms: int | None = None,
    eval_max_atoms: int | None = None,
    train: Sequence[str] | None = None,
    relaxer: Relaxer | None = None,
    weight_decay: float = 1e-3,
    clip: float = 10.0,
    ema_decay: float | None = 0.9,
    warm_start: bool = False,
    forces: Forces | Sequence[Atoms] | Literal["base"] | None = None,
    keep: str = "better",
    seed: int = 0,
    progress: bool = True,
) -> Run:
    """Train a copy of a potential so that the starts relax to the targets.

    Batches, optimizer (AdamW), schedule and averages (EMA) are those of the configs: the same data in
    the same order (fairchem's data sets shuffle theirs), settings and seed give the numbers of
    ``fairchem -c``.

    Args:
        potential: the base; it is not changed.
        starts: initial structures.
        targets: their relaxed structures, wrapped into the cell in any way.
        validation: starts and targets that select the epoch.
        epochs: passes over the starts.
        lr: learning rate at its highest.
        signal: the training signal; None is ``GDEQ()``, whose defaults are those of the configs.
        max_atoms: atoms of a training batch; None is four times the largest start.
        eval_max_atoms: atoms evaluated together in validation.
        train: patterns of the names of the parameters that learn; None is all.
        relaxer: how validation relaxes, and ``best`` from then on; None is the potential's, with as
            many plain steps as the signal's horizon.
        weight_decay, clip, ema_decay: of the optimizer, of the gradient's length, of the average
            (None: there is none).
        warm_start: begin a structure's adjoint solve from its last answer.
        forces: what is trained on beside the signal, so that what is right stays right: structures with
            forces, ``base`` for the base's own, or either with its settings as ``Forces``.
        keep: which epoch becomes ``best``: ``better``, one that validation says is better than the base
            with an interval that excludes chance; ``lowest``, the lowest in the mean of log(1 + Delta Q);
            ``last``.
        seed: of the order of structures.
        progress: show a bar.

    Raises:
        BadRows: lists the structures that cannot be used.
        ValueError: settings that cannot be meant; says which.
    """
    given, wanted = as_list(starts), as_list(targets)
    require_pairs("training", given, wanted)
    signal = signal or GDEQ()
    if isinstance(signal, Direct):
        raise ValueError(
            "signal=Direct(): what it trains predicts displacements and is no Potential. Expected "
            "another signal, or fairchem -c configs/si/direct.yml"
        )
    if forces is None:
        for_signal(signal, None)
    largest = max(len(atoms) for atoms in given)
    max_atoms = max_atoms or 4 * largest
    if max_atoms < largest:
        raise ValueError(f"max_atoms={max_atoms}: the largest start has {largest} atoms")
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: expected at least 1")
    task = replace(potential.task, relaxer=relaxer or _relaxer_for(signal, potential))
    base = replace(potential, task=task, name="base")
    check = None
    if validation is not None:
        check = _Validation(as_list(validation[0]), as_list(validation[1]), eval_max_atoms)
    tuned = replace(base, model=copy.deepcopy(base.model), name="tuned")
    if train is not None:
        train_only(tuned.model, train)
    warn_of_other_heads(tuned.model, force_task(tuned.tasks))
    batches = Batches(tuned, given, wanted, max_atoms, seed)
    beside = None
    if forces is not None:
        forces = forces if isinstance(forces, Forces) else Forces(forces)
        beside = forces.open(base, max_atoms, seed)
        settings = for_signal(signal, beside.settings)
        assert settings is not None
        beside = replace(beside, settings=settings)
        beside.check(base, given, check.named() if check is not None else ())
    loop = Loop(tuned, signal, batches, epochs, lr, weight_decay, clip, ema_decay, beside)
    loop.adjoints = Adjoints() if warm_start and epochs > 1 else None

    history, best = History(keep), base
    if check is not None:
        history.set_base(*check.scores(base))
    with tqdm(
        total=epochs * len(batches), desc="finetune", unit="step", disable=not progress
    ) as bar:
        for epoch in range(1, epochs + 1):
            for _ in loop.epoch(epoch - 1):
                _show(bar, loop.steps[-1], history)
            if check is not None:
                history.add_epoch(epoch, *check.scores(loop.averaged), task.basin)
                if _best_epoch(history) == epoch:
                    best = loop.snapshot()
    last = loop.snapshot()
    number = _best_epoch(history) if check is not None else epochs
    run = Run(
        best=best if check is not None else last,
        base=base,
        last=last,
        best_epoch=number,
        history=[{"epoch": 0, **history.base}, *history.epochs] if history.base else [],
        steps=loop.steps,
    )
    logging.info(repr(run))
    if check is not None and not run.improved:
        logging.warning(f"{run!r}. Try a lower or higher lr, more epochs or more structures")
    return run


def _relaxer_for(signal: Signal, potential: Potential) -> Relaxer:
    """The potential's, beginning with the plain steps that the signal trains."""
    horizon = getattr(signal, "horizon", potential.task.relaxer.horizon)
    return replace(potential.task.relaxer, horizon=horizon)


def _best_epoch(history: History) -> int:
    """The number of the best epoch, 0 where that is the base."""
    return 0 if history.best is None else int(history.best["epoch"])


def _show(bar: tqdm, log: dict[str, float], history: History) -> None:
    numbers = {}
    if "train/forces_loss" in log:
        numbers["forces"] = log["train/forces_loss"]
    if "train/converged" in log:  # not where the step was of forces alone
        numbers |= {"dQ": log["train/delta_q_relaxed"], "conv": log["train/converged"]}
        if math.isnan(numbers["dQ"]):
            numbers["dQ"] = log["train/delta_q_guided"]
    if history.epochs:
        numbers["val_dQ"] = history.epochs[-1]["delta_q_mean"]
    bar.set_postfix({key: f"{value:.2f}" for key, value in numbers.items()}, refresh=False)
    bar.update()


class _Validation:
    """Structures that select the epoch."""

    def __init__(self, starts: list[Atoms], targets: list[Atoms], budget: int | None) -> None:
        require_pairs("validation", starts, targets)
        self.starts, self.targets, self.budget = starts, targets, budget

    def named(self) -> Iterator[Named]:
        """Each of them as messages call it."""
        for what, structures in (("start", self.starts), ("target", self.targets)):
            for index, atoms in enumerate(structures):
                yield Named(f"validation {what} {index}", atoms)

    def scores(self, potential: Potential) -> tuple[dict[str, float], list[Record]]:
        """Summary and records of a potential."""
        scoring, chosen = scoring_of(
            potential, self.starts, self.targets, "validation", self.budget
        )
        records = scoring.relaxed(chosen)
        return summarise(records, potential.task.basin), records
