"""What ``fairchem --mode train``, ``validate``, ``predict`` and ``run-relaxations`` do.

fairchem 1 finds a task by the name of the mode, and allows no others. So these take the names of its
own and leave trainers that are not ours to them.
"""

from __future__ import annotations

import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.tasks.task import (
    BaseTask,
    PredictTask,
    RelaxationTask,
    TrainTask,
    ValidateTask,
)
from fairchem.core.trainers.base_trainer import BaseTrainer

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.report import report
from fairchem_gdeq.evaluation.rows import open_reference
from fairchem_gdeq.evaluation.scoring import BASE, TUNED, EvaluatedModel
from fairchem_gdeq.evaluation.submission import write_positions
from fairchem_gdeq.fairchem1.base import load_averaged, read_checkpoint
from fairchem_gdeq.fairchem1.evaluating import BEST
from fairchem_gdeq.fairchem1.held_frames import force_errors
from fairchem_gdeq.fairchem1.same_run import settings_of
from fairchem_gdeq.fairchem1.trainer import GDEQTrainer
from fairchem_gdeq.page.write import NAME, name_of
from fairchem_gdeq.training.in_use import in_use
from fairchem_gdeq.training.ranks import rank, synchronize
from fairchem_gdeq.training.same_run import (
    keep_settings,
    require_nothing_done,
    require_same_run,
)


def results(trainer: GDEQTrainer) -> Path:
    """Folder of tables, plots and predictions of the run."""
    return Path(trainer.config["cmd"]["results_dir"])


def tuned(trainer: GDEQTrainer, checkpoint: str | None) -> EvaluatedModel | None:
    """The trainer's model with a checkpoint's weights, or the run's best; None if there is none.

    Raises:
        FileNotFoundError, ValueError: as ``read_checkpoint``.
    """
    path = checkpoint or os.path.join(trainer.config["cmd"]["checkpoint_dir"], BEST)
    if checkpoint is None and not os.path.isfile(path):
        logging.warning(
            f"{path}: no tuned model yet, so only the base is used. Train first with --mode train, "
            "or name a model with --checkpoint PATH"
        )
        return None
    hint = "Name another with --checkpoint PATH."
    load_averaged(trainer, path, read_checkpoint(path, hint, trainer.settings.trust_files))
    return EvaluatedModel(TUNED, trainer._unwrapped_model, trainer.is2rs)


def compare(
    trainer: GDEQTrainer, split: str, tuned: EvaluatedModel | None, folder: Path, page: str = NAME
) -> None:
    """The results table of a split: unrelaxed, base, tuned and what else the config asks for."""
    settings, scoring = trainer.settings, trainer.scoring(split)
    reference = open_reference(settings.reference)
    # Opened first: what is wrong with them is said before anything is relaxed.
    frames = settings.forces.held and settings.forces.held.open()
    compared = scoring.compare(trainer.base, tuned, settings.baselines, reference)
    errors: dict[str, Scores] = {}
    if frames is not None:
        models = {each.name: each.model for each in (trainer.base, tuned) if each is not None}
        budget, device = settings.eval_max_atoms, trainer.device
        errors = force_errors(frames, models, trainer.field_of, budget, device)
    name = scoring.split.name  # as its folder is called
    report(name, folder, settings.signal, settings.basin, *compared, trainer.history, errors, page)


class _Evaluation(BaseTask):
    """Works with the run's best model, where ``--checkpoint`` names no other, or ``base``."""

    def setup(self, trainer: BaseTrainer) -> None:
        """As fairchem's for its own trainers; ours opens no training state."""
        if not isinstance(trainer, GDEQTrainer):
            super().setup(trainer)
            return
        self.trainer = trainer
        self.chkpt_path = os.path.join(trainer.config["cmd"]["checkpoint_dir"], "checkpoint.pt")
        asked = self.config["checkpoint"]
        self.tuned = None if asked == BASE else tuned(trainer, asked)

    @property
    def chosen(self) -> EvaluatedModel:
        """The model to predict with."""
        return self.tuned or self.trainer.base


@registry.register_task("train")
class Train(TrainTask):
    """Train (or go on), then score unrelaxed, base and best epoch on the test split."""

    def run(self) -> None:
        """fairchem's training, and our table after it.

        Raises:
            ValueError: as ``require_same_run``, ``require_nothing_done`` and ``in_use``.
        """
        trainer = self.trainer
        if not isinstance(trainer, GDEQTrainer) or trainer.is_debug:
            super().run()
            return
        folder = Path(trainer.config["cmd"]["checkpoint_dir"])
        with in_use(folder, "train"):
            settings = settings_of(trainer.config)
            require_same_run(settings, folder, "--task.run_id=NAME")
            if not (folder / "checkpoint.pt").is_file():
                require_nothing_done(results(trainer), folder, "--task.run_id=NAME")
            synchronize()  # before the settings are written anew, all ranks have read them
            if rank() == 0:
                keep_settings(settings, folder)
            super().run()
            if trainer.test_loader is not None:
                compare(trainer, "test", tuned(trainer, None), results(trainer))


@registry.register_task("validate")
class Validate(_Evaluation, ValidateTask):
    """Scores of ``task.split``; files go to ``validate`` in the results, the run's own stay."""

    def run(self) -> None:
        """Table, JSON, pictures and page."""
        trainer = self.trainer
        if not isinstance(trainer, GDEQTrainer):
            super().run()
            return
        split, folder = trainer.settings.split, results(trainer) / "validate"
        with in_use(results(trainer), f"validate_{split}"):
            compare(trainer, split, self.tuned, folder, name_of(split))


@registry.register_task("predict")
class Predict(_Evaluation, PredictTask):
    """Relaxed structures of the test split: ``test.extxyz`` and ``test.npz`` (see ``submission``)."""

    def run(self) -> None:
        """Relax; an interrupted prediction goes on where it was."""
        trainer: Any = self.trainer
        if not isinstance(trainer, GDEQTrainer):
            super().run()
            return
        if self.tuned is None and self.config["checkpoint"] != BASE:
            folder = trainer.config["cmd"]["checkpoint_dir"]
            raise ValueError(
                f"--mode predict: no {BEST} in {folder}: expected that of a training. Train first with "
                "--mode train, name a model with --checkpoint PATH, or take the base with --checkpoint "
                "base"
            )
        logging.info(f"predicting with the {self.chosen.name} model")
        with in_use(results(trainer), "predict"):
            trainer.scoring("test").predict(self.chosen, results(trainer) / "predictions")


@registry.register_task("run-relaxations")
class RunRelaxations(_Evaluation, RelaxationTask):
    """``relaxed_positions.npz`` of ``dataset.relax`` (else the test split), as fairchem's, and a score.

    The relaxation is the one that was trained: plain steps, then a solver, in flight.
    """

    def run(self) -> None:
        """Relax and write; with targets, score as well."""
        trainer: Any = self.trainer
        if not isinstance(trainer, GDEQTrainer):
            super().run()
            return
        logging.info(f"relaxing with the {self.chosen.name} model")
        settings, folder = trainer.settings, results(trainer)
        scoring = trainer.scoring("relax" if trainer.config["relax_dataset"] else "test")
        with in_use(folder, "relax"):
            images = scoring.predict(self.chosen, folder / "relaxations")
            if rank() == 0:
                write_positions(folder / "relaxed_positions.npz", images)
            if all("pos_relaxed" in row for row in islice(scoring.split.rows(), 1)):
                records = {self.chosen.name: scoring.records_of(self.chosen, images)}
                name, into = scoring.split.name, folder / "relaxations"
                report(name, into, settings.signal, settings.basin, records, None, trainer.history)
