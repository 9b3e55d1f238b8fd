"""The trainers' loop without their files: batches, optimizer, schedule, averages, steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
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

from fairchem_gdeq.api.forces import OpenForces
from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.relax import Operator, Signal, SignalReport
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.replay import optimize
from fairchem_gdeq.training.steps import Beside, Update, differentiate, update


class Batches:
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


class Loop:
    """Optimizer, schedule, average, and the steps that were taken."""

    def __init__(
        self,
        tuned: Potential,
        signal: Signal,
        batches: Batches,
        epochs: int,
        lr: float,
        weight_decay: float,
        clip: float,
        ema_decay: float | None,
        forces: OpenForces | None = None,
    ) -> None:
        self.tuned, self.signal, self.batches, self.clip = tuned, signal, batches, clip
        self.adjoints: Adjoints | None = None
        self.steps: list[dict[str, float]] = []
        self.total = epochs * len(batches)
        self.replay = None if forces is None else forces.replay(tuned)
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
        self.optimizer.zero_grad(set_to_none=True)
        differentiate = partial(self._differentiate, batch)
        with tf32_context_manager(False):
            step, forces = len(self.steps), self.replay
            silent = forces is not None and forces.settings.without_signal(step, self.total)
            log = optimize(step, silent, batch, differentiate, self._update, forces)
        log["train/lr"] = float(np.ravel(self.scheduler.get_last_lr())[0])
        self.scheduler.step()
        return log

    def _differentiate(self, batch: AtomicData) -> tuple[SignalReport, Operator]:
        """Add the signal's gradient of a batch to the parameters' ``.grad``."""
        operator = self.tuned.task.operator(self.tuned.model, self.tuned.tasks, batch)
        return differentiate(self.signal, operator, batch, self.adjoints), operator

    def _update(self, count: int, beside: Beside | None = None) -> Update:
        """A step of the optimizer with the gradient of so many structures."""
        model = self.tuned.model
        return update(
            model.parameters(),
            self.optimizer,
            count,
            clip=self.clip,
            beside=beside,
            ema=None if self.ema is None else partial(self.ema.update_parameters, model),
        )
