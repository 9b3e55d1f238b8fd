"""The trainer ``relaxnet``: fairchem's unit with RelaxNet's loss on paths of its ODE."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import tf32_context_manager
from omegaconf import DictConfig
from torch import nn
from torchtnt.framework import State

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.extras import require
from fairchem_gdeq.fairchem2.fields import force_task, hydra_model
from fairchem_gdeq.fairchem2.relaxing import RelaxingUnit
from fairchem_gdeq.models.relaxnet import RelaxNetHead
from fairchem_gdeq.relaxnet.held import reference_of
from fairchem_gdeq.relaxnet.loss import RelaxNetLoss
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS
from fairchem_gdeq.training import steps
from fairchem_gdeq.training.memory import peak_mb, reset_peak


@registry.register_trainer("relaxnet")
class RelaxNetTrainer(RelaxingUnit):
    """Trains a RelaxNet on trajectories (eq. 7), from random weights.

    EMA, clipping, schedule, checkpoints, resume and the exported inference checkpoint are fairchem's;
    validation evolves structures and scores where they end, as ``RelaxingUnit`` has it.
    """

    warm_start = False  # there is no adjoint solve
    forces = None  # nor anything beside the loss

    def __init__(
        self,
        job_config: DictConfig,
        model: nn.Module,
        optimizer_fn: partial[Any],
        cosine_lr_scheduler_fn: partial[Any],
        tasks: list[Task],
        is2rs: RelaxNetIS2RS,
        loss: RelaxNetLoss,
        keep: str = "lowest",
        print_every: int = 10,
        clip_grad_norm: float | None = 1.0,
        ema_decay: float | None = 0.99,
    ) -> None:
        """
        Args:
            job_config, model, optimizer_fn, cosine_lr_scheduler_fn: as ``MLIPTrainEvalUnit``.
            tasks: as there; one is of forces.
            is2rs: evolution and scoring.
            loss: the weights of eq. 7.
            keep: which epoch is exported, one of ``history.KEEP``.
            print_every, clip_grad_norm, ema_decay: as ``MLIPTrainEvalUnit``.

        Raises:
            ImportError: torchdiffeq is not installed; names the extra.
            ValueError: no single force task.
        """
        require("torchdiffeq", "torchdiffeq", "relaxnet")
        self.force_task = force_task(list(tasks))
        super().__init__(
            is2rs=is2rs,
            alpha_lr=0.0,
            keep=keep,
            compiled=False,
            job_config=job_config,
            model=model,
            optimizer_fn=optimizer_fn,
            cosine_lr_scheduler_fn=cosine_lr_scheduler_fn,
            tasks=tasks,
            print_every=print_every,
            clip_grad_norm=clip_grad_norm,
            ema_decay=ema_decay,
        )
        self.loss, self.signal_name = loss, "relaxnet"

    def on_train_start(self, state: State) -> None:
        """As fairchem's; a new run fits the elements' energies and scores the untrained model first."""
        if self.lazy_state_location is None:
            assert state.train_state is not None
            loader: Any = state.train_state.dataloader
            self._fit_references(loader.dataset)
            if distutils.is_master():
                self.history.open(self._folder, 0)
        super().on_train_start(state)
        if not self.history.knows_base and self.score_base is not None:
            records = self.score_base()
            self.history.set_base(summarise(records, self.is2rs.basin), records)

    def _fit_references(self, trajectories: Any) -> None:
        """Of the last frames of all trajectories, on every rank alike."""
        counts, energies = [], []
        size = self._heads[0].references.numel()
        for item in (trajectories[i] for i in range(len(trajectories))):
            counts.append(torch.bincount(item.atomic_numbers.cpu(), minlength=size))
            energies.append(item.path_energies[0, -1].cpu())
        for head in self._heads:
            head.fit_references(torch.stack(counts), torch.stack(energies))

    @property
    def _heads(self) -> list[RelaxNetHead]:
        """Of the model and of its average."""
        models = [m for m in (self.model, self.ema_model) if m is not None]
        heads = [head for m in models for head in hydra_model(m).output_heads.values()]
        return [head for head in heads if isinstance(head, RelaxNetHead)]

    def train_step(self, state: State, data: AtomicData) -> dict[str, float]:
        """One optimizer step; structures whose path is lost have no part in it, and are named."""
        assert state.train_state is not None
        loader: Any = state.train_state.dataloader
        reset_peak()
        started = time.perf_counter()
        batch = data.to(get_device_for_local_rank())
        self.optimizer.zero_grad(set_to_none=True)
        step = self.train_progress.num_steps_completed
        with tf32_context_manager(self.tf32):
            log, count = self._differentiate(batch)
        ema = self.ema_model
        done = steps.update(
            self.model.parameters(),
            self.optimizer,
            count,
            clip=float("inf") if self.clip_grad_norm is None else self.clip_grad_norm,
            ema=None if ema is None else partial(ema.update_parameters, self.model),
        )
        log |= {
            "train/grad_norm": float(done.norm),
            "train/step": step,
            "train/lr": self.scheduler.get_last_lr()[0],
            "train/epoch": self.train_progress.num_epochs_completed
            + self.train_progress.num_steps_completed_in_epoch / len(loader),
            "train/seconds": time.perf_counter() - started,
            "train/peak_memory_mb": peak_mb(),
        }
        self.last_loss, self.last_grad_norm = log["train/loss"], log["train/grad_norm"]
        self.history.add_step(log)
        self._log(log, step)
        if step % self.print_every == 0:
            logging.info(log)
        self.scheduler.step()
        return log

    def _differentiate(self, batch: AtomicData) -> tuple[dict[str, float], int]:
        """Add the gradient of the loss to ``.grad``: its log, and of how many structures it is."""
        is2rs, model = self.is2rs, hydra_model(self.model)
        assert isinstance(is2rs, RelaxNetIS2RS)
        path = is2rs.evolve(model, batch)
        lost = is2rs.lost(batch, path).tolist()
        share = sum(lost) / len(lost)
        if any(lost):
            names = [str(sid) for sid, bad in zip(batch.sid, lost, strict=True) if bad]
            logging.warning(f"left out of this step, their paths are lost: {', '.join(names)}")
            kept = [batch.get_example(i) for i, bad in enumerate(lost) if not bad]
            if not kept:
                return {"train/loss": float("nan"), "train/diverged": share}, 0
            batch = collate(kept)
            path = is2rs.evolve(model, batch)
        value, terms = self.loss(path, reference_of(batch), is2rs.structures(batch))
        value.backward()
        log = {f"train/{name}_loss": float(term.detach()) for name, term in terms.items()}
        return {**log, "train/loss": float(value.detach()), "train/diverged": share}, len(
            batch.natoms
        )
