"""What a run of fairchem 2 does between its steps: validates by relaxing, logs, and saves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import (
    UNIT_INFERENCE_CHECKPOINT,
    UNIT_RESUME_CONFIG,
    MLIPTrainEvalUnit,
)
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim.lr_scheduler import LambdaLR
from torchtnt.framework import State
from torchtnt.utils.loggers import TensorBoardLogger

from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.records import Record, each_once
from fairchem_gdeq.fairchem2.base import export_tasks
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.damage import reason_of, write_sums
from fairchem_gdeq.training.failing import Diverging
from fairchem_gdeq.training.history import STATE, History
from fairchem_gdeq.training.length import Length
from fairchem_gdeq.training.ranks import gather
from fairchem_gdeq.training.swap import replacing


class RelaxingUnit(MLIPTrainEvalUnit):
    """fairchem's unit, whose validation relaxes structures and scores where they end.

    Attributes:
        history: what the run has seen so far.
        alpha: the operator's step, which may be learnt; saved with the model.
        decoder: of what multiplies it in plain steps, which may be learnt in its place; saved, too.
        learnt: the parameters that are of the step, whichever that is.
        adjoints: of the structures of this rank, where adjoint solves start warm.
        displaces: what is trained predicts displacements in one shot and is no potential.
        score_base: set by the runner, which has the validation split: records of the base on it.
        length: of the run, once training starts.
        diverging: counts structures that diverge, where too many end the run.
    """

    warm_start: bool
    displaces: bool = False
    length: Length
    diverging: Diverging | None = None

    def __init__(
        self, *, is2rs: IS2RS, alpha_lr: float, keep: str, compiled: bool, **fairchems: Any
    ) -> None:
        """
        Args:
            is2rs, alpha_lr, keep, compiled: as ``GDEQTrainer``.
            fairchems: arguments of ``MLIPTrainEvalUnit``.
        """
        super().__init__(**fairchems)
        self.compiled = compiled
        for module in (self.model, self.ema_model):
            if compiled and module is not None:
                compile_backbone(hydra_model(module))
        # fairchem's own TensorBoard logger cannot be constructed in 2.24; torchtnt's can.
        self.tensorboard = None
        if not self.job_config.logger and not self.job_config.debug:
            folder = os.path.join(self.job_config.metadata.log_dir, "tensorboard")
            self.tensorboard = TensorBoardLogger(folder, flush_secs=10)
        self.is2rs = is2rs
        self.history = History(keep)
        self.score_base: Callable[[], list[Record]] | None = None
        learn, self.decoder = alpha_lr > 0, is2rs.descent.decoder
        device = get_device_for_local_rank()
        alone = learn and self.decoder is None
        self.alpha = torch.tensor(is2rs.alpha, device=device, requires_grad=alone)
        self.learnt: list[Tensor] = [self.alpha]
        if self.decoder is not None:
            self.learnt = list(self.decoder.to(device).requires_grad_(learn).parameters())
        self.alpha_optimizer = torch.optim.Adam(self.learnt, lr=alpha_lr) if learn else None
        self.adjoints = Adjoints()
        self.epoch_records: list[Record] = []

    def on_train_start(self, state: State) -> None:
        """As fairchem's, which may go on from a checkpoint."""
        assert state.train_state is not None
        loader: Any = state.train_state.dataloader
        self.length = Length(state.train_state.max_epochs or 1, len(loader))
        super().on_train_start(state)

    @property
    def tuned_task(self) -> IS2RS:
        """How structures are relaxed with what is trained."""
        return self.is2rs.of_displacements if self.displaces else self.is2rs

    @property
    def _folder(self) -> Path:
        """Where the run's checkpoints are, and the steps of its history."""
        return Path(self.job_config.metadata.checkpoint_dir)

    def is_own(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of this run, and not of another one that it begins with."""
        return self._folder.resolve() in checkpoint.resolve().parents

    def _log(self, values: dict[str, float], step: int) -> None:
        """To W&B where ``job.logger`` asks for it, else to TensorBoard in the run's logs.

        W&B takes nothing more for a step that was committed, and a validation has the number of the step
        that follows it. It commits by itself when the next number comes, and at the end.
        """
        if self.logger is not None:
            self.logger.log(values, step=step, commit=False)
        elif self.tensorboard is not None:
            self.tensorboard.log_dict(values, step)

    # ---- validation --------------------------------------------------------------------------

    def on_eval_epoch_start(self, state: State) -> None:
        """Start an empty list of records."""
        self.eval_unit.model.eval()
        self.epoch_records = []

    def eval_step(self, state: State, data: AtomicData) -> list[Record]:
        """Relax a batch with the EMA weights and score it."""
        batch = data.to(get_device_for_local_rank())
        model = hydra_model(self.eval_unit.model)
        records, _ = self.tuned_task.relax(model, self.tasks, batch, self.alpha.detach())
        self.epoch_records += records
        return records

    def on_eval_epoch_end(self, state: State) -> None:
        """Score of the epoch over all ranks, kept in the history and logged."""
        records = each_once(gather(self.epoch_records))
        scores = summarise(records, self.is2rs.basin)
        epoch = self.train_progress.num_epochs_completed
        self.history.add_epoch(epoch, scores, records, self.is2rs.basin)
        logging.info({f"val/{k}": round(v, 4) for k, v in scores.items()})
        step = self.train_progress.num_steps_completed
        self._log({f"val/{k}": v for k, v in scores.items()}, step)

    # ---- checkpoints -------------------------------------------------------------------------

    def save_state(self, checkpoint_location: str) -> None:
        """A checkpoint to go on from: that of a model, and each rank's adjoints.

        A resumed run saves again the one that it came from, which stays whole until the new one is.
        """
        with replacing(Path(checkpoint_location)) as folder:
            self.adjoints.save(folder)
            self.save_model(str(folder))
            resume = folder / UNIT_RESUME_CONFIG
            if distutils.is_master() and resume.is_file():  # it names where fairchem has saved
                config = OmegaConf.load(resume)
                config.job.runner_state_path = checkpoint_location
                OmegaConf.save(config, resume)
            distutils.synchronize()
            if distutils.is_master():
                write_sums(folder)

    def save_model(self, checkpoint_location: str) -> None:
        """fairchem's checkpoint; beside it a file with history, alpha and its decoder."""
        fresh = not self.optimizer.state
        if distutils.is_master():
            os.makedirs(checkpoint_location, exist_ok=True)
            state = {
                "history": self.history.state(),
                "alpha": self.alpha.detach().cpu(),
                "decoder": self.decoder
                and {key: value.cpu() for key, value in self.decoder.state_dict().items()},
                "alpha_optimizer": self.alpha_optimizer and self.alpha_optimizer.state_dict(),
                "fresh": fresh,
                "length": self.length.state(),
                "diverging": self.diverging and self.diverging.state(),
            }
            torch.save(state, os.path.join(checkpoint_location, STATE))
        super().save_state(checkpoint_location)
        if fresh:  # torch has taken a step of length zero to see the state, which Adam would count
            self.optimizer.state.clear()
        exported = os.path.join(checkpoint_location, UNIT_INFERENCE_CHECKPOINT)
        if distutils.is_master() and os.path.exists(exported):
            # Before the first step it is the base, which is a potential whatever it will be trained to.
            trained = self.train_progress.num_steps_completed > 0
            export_tasks(exported, hydra_model(self.model), self.displaces and trained)

    def _execute_load_state(self, checkpoint_location: str | None) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is damaged; says where, and how to go on from another.
        """
        assert checkpoint_location is not None
        try:
            steps = self._load(checkpoint_location)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            for cause, _ in getattr(error, "failures", {}).values():
                if not isinstance(cause, Exception):  # a signal has ended it, not damage
                    raise cause from error
            advice = (
                "Remove that folder: the same command goes on from the checkpoint before it, or begins "
                "anew where there is none"
                if self.is_own(Path(checkpoint_location))
                else "Name another with job.runner_state_path=FOLDER"
            )
            raise ValueError(
                f"checkpoint {checkpoint_location}: expected one that is whole, found what cannot be "
                f"read ({reason_of(error)}). {advice}"
            ) from error
        if distutils.is_master():
            if steps is not None:
                self.history.take_over(self._folder, steps)
            else:
                self.history.open(self._folder, self.train_progress.num_steps_completed)

    def _load(self, checkpoint_location: str) -> list[dict[str, float]] | None:
        """What fairchem's unit and ours have kept there; steps where it is older than their file."""
        schedule = [dict(vars(each)) for each in self._schedule]
        super()._execute_load_state(checkpoint_location)
        state = open_checkpoint(os.path.join(checkpoint_location, STATE))
        own = self.is_own(Path(checkpoint_location))
        if "length" in state:  # older checkpoints do not say it
            self._place(Length(**state["length"]), own)
        self._reschedule(schedule)
        if own and self.diverging is not None and state.get("diverging"):
            self.diverging.load(state["diverging"])
        # Older checkpoints do not say it; theirs of before the first step surely are.
        if state.get("fresh", self.train_progress.num_steps_completed == 0):  # as in ``save_model``
            self.optimizer.state.clear()
        self.history.load(state["history"])
        with torch.no_grad():
            self.alpha.copy_(state["alpha"])
        if self.decoder is not None and state.get("decoder"):
            self.decoder.load_state_dict(state["decoder"])
        if self.alpha_optimizer is not None and state["alpha_optimizer"]:
            self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        if self.warm_start:
            self.adjoints.load(Path(checkpoint_location))
        steps: list[dict[str, float]] | None = state["history"].get("steps")
        return steps

    def _place(self, before: Length, own: bool) -> None:
        """Be where the checkpoint was, also where the ranks of now take other steps."""
        if own:
            self.length = self.length.going_on(before)
        if before.steps != self.length.steps:
            progress = self.train_progress
            within = self.length.moved(progress.num_steps_completed_in_epoch, before)
            progress._num_steps_completed_in_epoch = within
            if self._schedule:
                self.scheduler.last_epoch = self.length.moved(self.scheduler.last_epoch, before)

    @property
    def place(self) -> int:
        """Steps of the run that are done, as if the ranks of now had taken all of them."""
        progress = self.train_progress
        epochs = progress.num_epochs_completed
        return epochs * self.length.steps + progress.num_steps_completed_in_epoch

    @property
    def _schedule(self) -> list[Any]:
        """The functions of the learning rate by the step, where the schedule has such."""
        if not isinstance(self.scheduler, LambdaLR):
            return []
        return [each for each in self.scheduler.lr_lambdas if hasattr(each, "__dict__")]

    def _reschedule(self, wanted: list[dict[str, Any]]) -> None:
        """Take the config's schedule in the place of that in the checkpoint: a run may be longer now, and
        have other ranks.
        """
        if not wanted:
            return
        for each, settings in zip(self._schedule, wanted, strict=True):
            vars(each).update(settings)
        step = self.scheduler.last_epoch
        rates = [
            base * rate(step)
            for base, rate in zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = rates
