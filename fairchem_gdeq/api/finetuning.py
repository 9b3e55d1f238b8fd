"""Fine-tuning from Python: the trainers' step, batches, schedule and averages in a plain loop."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from ase import Atoms
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.samplers.max_atom_distributed_sampler import (
    MaxAtomDistributedBatchSampler,
)
from fairchem.core.units.mlip_unit.mlip_unit import _get_consine_lr_scheduler, _get_optimizer_wd
from fairchem.core.units.mlip_unit.utils import tf32_context_manager
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fairchem_gdeq.api.evaluating import scoring_of
from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import as_list, require_pairs
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.fairchem2.base import train_only, warn_of_other_heads
from fairchem_gdeq.fairchem2.fields import force_task, hydra_model
from fairchem_gdeq.relax import GDEQ, GMRES, Relaxer, Signal
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.steplog import describe
from fairchem_gdeq.training.steps import differentiate, update

# As the configs have it: loose and damped, since exactly, a soft mode outweighs the rest of the gradient.
DEFAULT = GDEQ(horizon=20, fmax=0.02, adjoint=GMRES(tol=0.05, max_vjps=60, damping=0.03))
Pairs = tuple[Iterable[Atoms], Iterable[Atoms]]


@dataclass(frozen=True, repr=False)
class Run:
    """What a fine-tuning has led to.

    Attributes:
        best: the potential of the epoch with the lowest mean Delta Q on the validation structures, of
            which the untrained one is epoch 0: ``best`` is never worse on them. Without validation
            structures, the last.
        base: the untrained one, relaxed as ``best`` is; last: that of the last epoch.
        best_epoch: its number.
        history: validation scores of each epoch, from 0 on, by ``epoch``; empty without validation.
        steps: numbers of each optimizer step.
    """

    best: Potential
    base: Potential
    last: Potential
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)
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
        signal: the training signal; None is ``DEFAULT``, that of the configs.
        max_atoms: atoms of a training batch; None is four times the largest start.
        eval_max_atoms: atoms evaluated together in validation.
        train: patterns of the names of the parameters that learn; None is all.
        relaxer: how validation relaxes, and ``best`` from then on; None is the potential's, with as
            many plain steps as the signal's horizon.
        weight_decay, clip, ema_decay: of the optimizer, of the gradient's length, of the average
            (None: there is none).
        warm_start: begin a structure's adjoint solve from its last answer.
        seed: of the order of structures.
        progress: show a bar.

    Raises:
        BadRows: lists the structures that cannot be used.
        ValueError: settings that cannot be meant; says which.
    """
    given, wanted = as_list(starts), as_list(targets)
    require_pairs("training", given, wanted)
    signal = signal or DEFAULT
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
    batches = _Batches(tuned, given, wanted, max_atoms, seed)
    loop = _Loop(tuned, signal, batches, epochs, lr, weight_decay, clip, ema_decay)
    loop.adjoints = Adjoints() if warm_start and epochs > 1 else None

    history, best = History(), base
    if check is not None:
        history.add_epoch(0, check.scores(base))
    with tqdm(
        total=epochs * len(batches), desc="finetune", unit="step", disable=not progress
    ) as bar:
        for epoch in range(1, epochs + 1):
            for _ in loop.epoch(epoch - 1):
                _show(bar, loop.steps[-1], history)
            if check is not None:
                history.add_epoch(epoch, check.scores(loop.averaged))
                if _best_epoch(history) == epoch:
                    best = loop.snapshot()
    last = loop.snapshot()
    number = _best_epoch(history) if check is not None else epochs
    run = Run(
        best=best if check is not None else last,
        base=base,
        last=last,
        best_epoch=number,
        history=history.epochs,
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
    """The earliest of lowest validation Delta Q; the base where none is finite."""
    return 0 if history.best is None else int(history.best["epoch"])


def _show(bar: tqdm, log: dict[str, float], history: History) -> None:
    numbers = {"dQ": log["train/delta_q_relaxed"], "conv": log["train/converged"]}
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

    def scores(self, potential: Potential) -> dict[str, float]:
        scoring, chosen = scoring_of(
            potential, self.starts, self.targets, "validation", self.budget
        )
        return summarise(scoring.relaxed(chosen), potential.task.basin)


class _Batches:
    """Training batches in the order that fairchem's sampler gives them."""

    def __init__(
        self, potential: Potential, starts: list[Atoms], targets: list[Atoms], size: int, seed: int
    ) -> None:
        self.potential, self.starts, self.targets = potential, starts, targets
        self.sampler = MaxAtomDistributedBatchSampler(
            self, size, num_replicas=1, rank=0, seed=seed, shuffle=True
        )

    def __len__(self) -> int:
        """Batches; while the sampler is being made, structures."""
        return len(self.sampler) if hasattr(self, "sampler") else len(self.starts)

    def get_metadata(self, key: str, indices: list[int]) -> list[int]:
        """Numbers of atoms, for the sampler."""
        return [len(self.starts[i]) for i in indices]

    def of_epoch(self, epoch: int) -> Iterator[AtomicData]:
        """Those of an epoch, counted from 0, on the host."""
        self.sampler.set_epoch_and_start_iteration(epoch, 0)
        for indices in self.sampler:
            rows = [self.potential.row(self.starts[i], int(i), self.targets[i]) for i in indices]
            yield collate(rows)


class _Loop:
    """Optimizer, schedule, average, and the steps that were taken."""

    def __init__(
        self,
        tuned: Potential,
        signal: Signal,
        batches: _Batches,
        epochs: int,
        lr: float,
        weight_decay: float,
        clip: float,
        ema_decay: float | None,
    ) -> None:
        self.tuned, self.signal, self.batches, self.clip = tuned, signal, batches, clip
        self.adjoints: Adjoints | None = None
        self.steps: list[dict[str, float]] = []
        adam = partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay)
        self.optimizer = _get_optimizer_wd(adam, tuned.model)
        self.scheduler = _get_consine_lr_scheduler(
            warmup_factor=0.2,
            warmup_epochs=0.1,
            lr_min_factor=0.05,
            n_iters_per_epoch=len(batches),
            optimizer=self.optimizer,
            epochs=epochs,
        )
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(tuned.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        tuned.model.eval()  # every evaluation of a step must be the same map

    @property
    def averaged(self) -> Potential:
        """The potential with the weights as averaged until now."""
        if self.ema is None:
            return self.tuned
        return replace(self.tuned, model=hydra_model(self.ema).eval())

    def snapshot(self) -> Potential:
        """A copy of it."""
        found = self.averaged
        return replace(found, model=copy.deepcopy(found.model))

    def epoch(self, number: int) -> Iterator[None]:
        """Take the steps of an epoch, counted from 0; gives way after each."""
        for batch in self.batches.of_epoch(number):
            started = time.perf_counter()
            log = self._step(batch.to(self.tuned.device))
            log["train/epoch"] = len(self.steps) / len(self.batches)
            log["train/seconds"] = time.perf_counter() - started
            self.steps.append(log)
            yield

    def _step(self, batch: AtomicData) -> dict[str, float]:
        model, tuned = self.tuned.model, self.tuned
        self.optimizer.zero_grad(set_to_none=True)
        with tf32_context_manager(False):
            operator = tuned.task.operator(model, tuned.tasks, batch)
            report = differentiate(self.signal, operator, batch, self.adjoints)
        done = update(
            model.parameters(),
            self.optimizer,
            batch.num_graphs,
            clip=self.clip,
            ema=None if self.ema is None else partial(self.ema.update_parameters, model),
        )
        log = describe(report, operator) | {
            "train/lr": float(np.ravel(self.scheduler.get_last_lr())[0]),
            "train/grad_norm": float(done.norm),
            "train/skipped_update": float(not done.applied),
        }
        self.scheduler.step()
        return log
