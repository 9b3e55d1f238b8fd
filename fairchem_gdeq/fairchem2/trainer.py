"""The trainer ``gdeq``: fairchem's unit with Algorithm 1 in place of its force-matching step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import tf32_context_manager
from omegaconf import DictConfig
from torch import Tensor, nn
from torchtnt.framework import State

from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.fairchem2.base import warn_of_other_heads
from fairchem_gdeq.fairchem2.fields import force_task, hydra_model
from fairchem_gdeq.fairchem2.relaxing import RelaxingUnit
from fairchem_gdeq.fairchem2.replay import BaseBatches, ForceReplay, FrameBatches, forces_loss
from fairchem_gdeq.fairchem2.supported import require_exact
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import SIGNALS, Operator, Signal, SignalReport, make_signal
from fairchem_gdeq.relax.deprecated import current_settings
from fairchem_gdeq.relax.signals import Direct
from fairchem_gdeq.training import steps
from fairchem_gdeq.training.failing import Diverging, is_guided
from fairchem_gdeq.training.history import require_some_end
from fairchem_gdeq.training.memory import peak_mb, reset_peak
from fairchem_gdeq.training.proximal import Proximal
from fairchem_gdeq.training.ranks import gather
from fairchem_gdeq.training.replay import Replay, for_signal, optimize
from fairchem_gdeq.training.steps import Beside, LearntStep, Update

LEAST_ALPHA = 0.01  # of the configured alpha: what a learnt one is held above


@registry.register_trainer("gdeq")
class GDEQTrainer(RelaxingUnit):
    """Fine-tunes a model through its own relaxations.

    EMA, clipping, schedule, DCP checkpoints, resume and the exported inference checkpoint are
    fairchem's; the gradient is one of ``fairchem_gdeq.relax.signals``; validation is ``RelaxingUnit``'s.
    """

    def __init__(
        self,
        job_config: DictConfig,
        model: nn.Module,
        optimizer_fn: partial,
        cosine_lr_scheduler_fn: partial,
        tasks: list[Task],
        is2rs: IS2RS,
        signal: Signal | str = "gdeq",
        alpha_lr: float = 0.0,
        proximal: float = 0.0,
        warm_start: bool = False,
        keep: str = "better",
        forces: ForceReplay | None = None,
        compiled: bool = False,
        most_diverged: float = 1.0,
        print_every: int = 10,
        clip_grad_norm: float | None = 1.0,
        ema_decay: float | None = 0.99,
        tf32: bool = False,
        method: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            job_config, model, optimizer_fn, cosine_lr_scheduler_fn: as ``MLIPTrainEvalUnit``.
            tasks: as there; they must hold one task with property forces.
            is2rs: operator, relaxation and scoring.
            signal: the training signal, or its name for one with its default settings.
            alpha_lr: learning rate of the scalar step alpha (Adam), or of the decoder that ``is2rs`` has
                for it; 0 keeps them fixed. A learnt alpha stays above a hundredth of that of ``is2rs``.
            proximal: strength of ``Proximal``; 0 is none.
            warm_start: begin a structure's adjoint solve from its last answer, where there is more
                than one epoch: no structure is seen again in a single one.
            method: settings of a signal that is given by its name, as in version 0.1.
            keep: which epoch is exported, one of ``history.KEEP``; by default one that validation says is
                better than the base, or else the base.
            forces: what is trained on beside the signal.
            compiled: whether to compile the backbone, of the base and the tuned model as well.
            most_diverged: share of the latest structures that may diverge before the run is ended.
            print_every, clip_grad_norm, ema_decay, tf32: as ``MLIPTrainEvalUnit``.

        Raises:
            ValueError: an unknown signal, a model that cannot be differentiated exactly, no single
                force task, or as ``for_signal``.
        """
        if isinstance(signal, str):
            signal = make_signal(signal, **current_settings(method or {}))
        require_exact(hydra_model(model))
        self.force_task = force_task(list(tasks))
        warn_of_other_heads(hydra_model(model), self.force_task)
        super().__init__(
            is2rs=is2rs,
            alpha_lr=alpha_lr,
            keep=keep,
            compiled=compiled,
            job_config=job_config,
            model=model,
            optimizer_fn=optimizer_fn,
            cosine_lr_scheduler_fn=cosine_lr_scheduler_fn,
            tasks=tasks,
            print_every=print_every,
            clip_grad_norm=clip_grad_norm,
            ema_decay=ema_decay,
            tf32=tf32,
        )
        self.signal, self.signal_name = signal, SIGNALS.name_of(signal)
        self.displaces = isinstance(signal, Direct)
        self.force_task.normalizer.to(get_device_for_local_rank())
        self.warm_start = warm_start
        self.diverging = Diverging(most_diverged, is_guided(signal))
        # Now: a resumed state is loaded later, and these are the base's weights.
        self.proximal = None
        if proximal:
            self.proximal = Proximal(self.model.parameters(), self.optimizer, proximal)
        self.forces = forces = for_signal(signal, forces)
        # Frames are opened when training starts: evaluation does not need them. The base is known now.
        self.replayed: FrameBatches | BaseBatches | None = None
        if forces is not None and forces.of_base:
            self.replayed = forces.open(self.force_task, hydra_model(model))

    def on_train_start(self, state: State) -> None:
        """As fairchem's, then evaluation mode: every evaluation of a step must be the same map."""
        assert state.train_state is not None
        if state.train_state.max_epochs == 1:
            self.warm_start = False
        if self.lazy_state_location is None and distutils.is_master():
            self.history.open(self._folder, 0)
        self.open_forces()
        super().on_train_start(state)
        if not self.history.knows_base and self.score_base is not None:
            records = self.score_base()
            require_some_end(records, self.is2rs.alpha)
            self.history.set_base(summarise(records, self.is2rs.basin), records)
        self.model.eval()

    def open_forces(self) -> None:
        """Open what is trained on beside the signal, once.

        Raises:
            ValueError: as ``ForceReplay.open``.
        """
        if self.forces is not None and self.replayed is None:
            self.replayed = self.forces.open(self.force_task, hydra_model(self.model))

    def differentiate(self, batch: AtomicData) -> tuple[SignalReport, Operator]:
        """Add the training signal's gradient for one batch to the parameters' ``.grad``."""
        model = hydra_model(self.model)
        operator = self.tuned_task.operator(model, self.tasks, batch, self.alpha)
        adjoints = self.adjoints if self.warm_start else None
        report = steps.differentiate(self.signal, operator, batch, adjoints)
        return report, operator

    def train_step(self, state: State, data: AtomicData) -> dict[str, float]:
        """One optimizer step; a gradient that is not finite is counted and thrown away.

        Raises:
            TooManyDiverged: too many structures of the latest steps have diverged.
        """
        reset_peak()
        started = time.perf_counter()
        batch = data.to(get_device_for_local_rank())
        self.optimizer.zero_grad(set_to_none=True)
        step = self.train_progress.num_steps_completed
        with tf32_context_manager(self.tf32):
            log = self._optimize(step, batch)
        seconds = time.perf_counter() - started

        log |= {
            "train/step": step,
            "train/lr": self.scheduler.get_last_lr()[0],
            "train/epoch": self.train_progress.num_epochs_completed
            + self.train_progress.num_steps_completed_in_epoch / len(state.train_state.dataloader),
            "train/alpha": float(self.alpha.detach()),
            "train/seconds": seconds,
            "train/peak_memory_mb": max(gather([peak_mb()])),
        }
        self.last_loss = log["train/loss"]
        self.history.add_step(log)
        self._log(log, step)
        if step % self.print_every == 0:
            logging.info(log)
        self.scheduler.step()
        return log

    def _optimize(self, step: int, batch: AtomicData) -> dict[str, float]:
        """A step of the run, ``replay.optimize``; its log."""
        silent = self.forces is not None and self.forces.without_signal(
            self.place, self.length.total
        )
        differentiate = partial(self.differentiate, batch)
        log = optimize(step, silent, batch, differentiate, self._update, self._replay)
        self.last_grad_norm = log["train/grad_norm"]
        if "train/structures" in log:  # not where the step was of forces alone
            assert self.diverging is not None
            self.diverging.add(log)
        return log

    @property
    def _replay(self) -> Replay | None:
        """Forces beside the signal, where there are any."""
        if self.forces is None or self.replayed is None:
            return None
        return Replay(self.forces, self.replayed, self._forces_loss)

    def _forces_loss(self, frames: AtomicData) -> Tensor:
        """fairchem's loss of a batch of forces."""
        assert self.replayed is not None
        frames = frames.to(get_device_for_local_rank())
        return forces_loss(hydra_model(self.model), self.replayed.task, frames)

    def _update(self, count: int, beside: Beside | None = None) -> Update:
        """Average gradients over the structures of all ranks (``count`` here), clip, step, EMA."""
        learnt = None
        if self.alpha_optimizer is not None:
            least = LEAST_ALPHA * self.is2rs.alpha if self.decoder is None else None
            learnt = LearntStep(self.learnt, self.alpha_optimizer, least)
        ema = self.ema_model
        return steps.update(
            self.model.parameters(),
            self.optimizer,
            count,
            clip=float("inf") if self.clip_grad_norm is None else self.clip_grad_norm,
            step=learnt,
            proximal=self.proximal,
            beside=beside,
            ema=None if ema is None else partial(ema.update_parameters, self.model),
        )
