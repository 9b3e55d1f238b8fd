"""What happens around a training run: progress, checkpoints, keeping the best epoch's model."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.common.utils import get_subdirectories_sorted_by_time
from fairchem.core.components.callbacks import TrainCheckpointCallback
from fairchem.core.units.mlip_unit.mlip_unit import UNIT_INFERENCE_CHECKPOINT
from torchtnt.framework import State
from torchtnt.framework.callback import Callback
from tqdm import tqdm

from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.damage import damage_of_file
from fairchem_gdeq.training.history import STATE
from fairchem_gdeq.training.ranks import from_the_first
from fairchem_gdeq.training.swap import LEFTOVERS, put_back, remove, replacing


class Progress(Callback):
    """One bar over all steps, with the numbers that matter."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._validated: dict[str, str] = {}

    def on_train_start(self, state: State, unit: GDEQTrainer) -> None:
        """Open the bar where the run (or the resumed run) stands."""
        if not distutils.is_master():
            return
        training: Any = state.train_state
        steps = len(training.dataloader)
        total = steps * training.max_epochs if training.max_epochs else None
        done = unit.place
        self._bar = tqdm(total=total, initial=done, desc=unit.signal_name, unit="step")

    def on_train_step_end(self, state: State, unit: GDEQTrainer) -> None:
        """Delta Q and convergence of the step, memory, and the last validation."""
        if self._bar is None:
            return
        log = unit.history.last
        assert log is not None
        shown = {}
        if "train/forces_loss" in log:
            shown["forces"] = f"{log['train/forces_loss']:.3f}"
        if "train/delta_q_relaxed" in log:
            relaxed = log["train/delta_q_relaxed"]
            known = relaxed if relaxed == relaxed else log["train/delta_q_guided"]
            shown["dQ"] = f"{known:.2f}"
            shown["conv"] = f"{log['train/converged']:.0%}"
            shown["evals"] = f"{log['train/evaluations']:.0f}"
        self._bar.set_postfix(
            {
                **shown,
                "MB": f"{log['train/peak_memory_mb']:.0f}",
                **self._validated,
            },
            refresh=False,
        )
        self._bar.update()

    def on_eval_epoch_end(self, state: State, unit: GDEQTrainer) -> None:
        """Remember the validation scores for the bar."""
        scores = unit.history.epochs[-1]
        self._validated = {
            "val_dQ": f"{scores['delta_q_mean']:.2f}",
            "basins": f"{scores['basins']:.0%}",
            "val_conv": f"{scores['converged']:.0%}",
        }

    def on_train_end(self, state: State, unit: GDEQTrainer) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, state: State, unit: GDEQTrainer, exc: BaseException) -> None:
        """Close the bar, so that what is wrong is said after it."""
        self.on_train_end(state, unit)


class Checkpoints(TrainCheckpointCallback):
    """Saves a checkpoint to go on from whenever a time has passed, and at the end.

    The time is what an interruption costs, whatever a step takes.
    """

    def __init__(self, minutes: float, max_saved_checkpoints: int = 2) -> None:
        """
        Args:
            minutes: between checkpoints; 0 saves before every step.
            max_saved_checkpoints: how many are kept.

        Raises:
            ValueError: a negative time.
        """
        if minutes < 0:
            raise ValueError(f"checkpoint_minutes={minutes}: expected a time >= 0")
        super().__init__(1, max_saved_checkpoints)
        self.seconds = 60 * minutes
        self._saved = time.monotonic()

    def on_train_start(self, state: State, unit: GDEQTrainer) -> None:
        """Begin to count."""
        self._saved = time.monotonic()

    def on_train_step_start(self, state: State, unit: GDEQTrainer) -> None:
        """Save if it is time, by the clock of the first rank: a checkpoint needs all of them."""
        if not from_the_first(lambda: time.monotonic() - self._saved >= self.seconds):
            return
        save, folder = self._checkpoint_hooks()
        save(os.path.join(folder, f"step_{unit.train_progress.num_steps_completed}"))
        if distutils.is_master():
            self._keep_the_latest(Path(folder))
        self._saved = time.monotonic()

    def _keep_the_latest(self, folder: Path) -> None:
        """Delete other checkpoints, what kills have left, and links to what is gone.

        fairchem's handler of signals cannot make a folder where such a link is.
        """
        by_time = [Path(path) for path, _ in get_subdirectories_sorted_by_time(str(folder))]
        whole = [p for p in by_time if p.suffix not in LEFTOVERS and not p.is_symlink()]
        for path in by_time:
            if not path.is_symlink() and path not in whole[-self.max_saved_checkpoints :]:
                remove(path)
        for path in folder.iterdir():
            if path.is_symlink() and not path.exists():
                path.unlink()


class KeepBest(Callback):
    """Saves ``results/best``: the base to begin with, then each epoch that is the best so far."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # set by the runner, which knows the run's folder

    def on_train_start(self, state: State, unit: GDEQTrainer) -> None:
        """The base is what is kept where no epoch is better.

        A run that was killed may have kept a later epoch than that which it goes on from. When this one
        is repeated, last digits and with them the choice may differ: so the kept one competes, too.

        Raises:
            ValueError: a run goes on whose best model is gone or damaged.
        """
        if unit.train_progress.num_steps_completed == 0:
            self._save(unit)
        elif self.folder is not None:
            latest = Path(str(unit.lazy_state_location)).resolve()
            from_the_first(partial(put_back, self.folder))
            if not unit.is_own(latest):  # and so there is no best model of its own
                unit.history.begin_with_another()
                self._save(unit)
            if reason := from_the_first(partial(self._damage, self.folder)):
                raise ValueError(
                    f"{self.folder}: expected the run's best model so far, found {reason}. Put that "
                    f"folder back; a copy of {latest} in its place is the latest model. Or remove "
                    f"{self.folder.parents[1]} to begin anew"
                )
            epochs = open_checkpoint(self.folder / STATE)["history"]["epochs"]
            unit.history.kept = epochs[-1] if epochs else None

    @staticmethod
    def _damage(folder: Path) -> str | None:
        """What is wrong with a best model; the table would lack it, and speak of it."""
        files = (folder / name for name in (UNIT_INFERENCE_CHECKPOINT, STATE))
        found = ((file.name, damage_of_file(file)) for file in files)
        return next((f"{name}: {reason}" for name, reason in found if reason), None)

    def on_eval_epoch_end(self, state: State, unit: GDEQTrainer) -> None:
        """Save the epoch if it is the best."""
        if unit.history.best is unit.history.epochs[-1]:
            self._save(unit)
            unit.history.kept = unit.history.epochs[-1]

    def _save(self, unit: GDEQTrainer) -> None:
        """Write beside the old one and swap, so that a kill leaves a whole checkpoint."""
        if self.folder is None:
            raise RuntimeError("KeepBest works with fairchem_gdeq's runner, which sets its folder")
        with replacing(self.folder) as folder:
            unit.save_model(str(folder))  # nobody goes on from it, so no adjoints
