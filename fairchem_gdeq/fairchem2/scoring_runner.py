"""What a runner relaxes and scores with: the base, the tuned model, and the splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.components.train.train_runner import TrainEvalRunner
from fairchem.core.datasets.atomic_data import AtomicData
from torch import nn
from torch.utils.data import DataLoader

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.report import report
from fairchem_gdeq.evaluation.scoring import BASE_RELAXED, EvaluatedModel, Kept, Scoring, Split
from fairchem_gdeq.fairchem2.evaluated import (
    chosen_file,
    open_tuned,
    tasks_of,
    warn_of_another_kind,
)
from fairchem_gdeq.fairchem2.fields import HydraForceField, force_task
from fairchem_gdeq.fairchem2.held_frames import HeldFrames
from fairchem_gdeq.fairchem2.loaders import atom_budget, row_count, rows_of
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.page.write import NAME


class ScoringRunner(TrainEvalRunner):
    """fairchem's runner, which relaxes and scores models.

    Attributes:
        loaders: of each split, by its name.
        base: the untrained model.
        base_digits: its fingerprint, from before it was evaluated.
        checkpoint: an inference checkpoint to score, or ``base``; None: the run's best epoch.
        baselines: further rows of the table.
        reference: what gives reference forces; None: nothing does.
        held_frames: labelled frames on which models have a force error; None: there are none.
        trust_files: as ``base.open_inference``.
    """

    loaders: dict[str, DataLoader[Any]]
    base: EvaluatedModel
    base_digits: str
    checkpoint: str | None
    baselines: Sequence[str]
    reference: Any
    held_frames: HeldFrames | None
    trust_files: bool
    train_eval_unit: GDEQTrainer

    @property
    def results(self) -> Path:
        """Folder of tables, plots, predictions and the best checkpoint."""
        return Path(self.job_config.metadata.results_dir)

    def tuned(self) -> EvaluatedModel | None:
        """The model to score, from ``checkpoint`` or the run's best epoch; None if there is none.

        Raises:
            FileNotFoundError: ``checkpoint`` is given and does not exist.
            ValueError: as ``open_tuned``.
        """
        path = chosen_file(self.checkpoint, self.results)
        if path is None:
            return None
        unit, datasets = self.train_eval_unit, self.train_eval_unit.force_task.datasets
        tuned = open_tuned(path, unit.is2rs, unit.compiled, self.trust_files, datasets)
        warn_of_another_kind(path, tuned.model, self.base.model)
        return tuned

    def score(self, split: str, folder: Path, page: str = NAME) -> dict[str, Scores]:
        """Score a split, a row for each model and baseline; table, JSON, plots and page."""
        unit, scoring = self.train_eval_unit, self._scoring(split)
        tuned = self.tuned()
        compared = scoring.compare(self.base, tuned, self.baselines, self.reference)
        errors: dict[str, Scores] = {}
        if self.held_frames is not None:
            device = torch.device(get_device_for_local_rank())
            for each in filter(None, (self.base, tuned)):
                task = force_task(tasks_of(each.model, unit.tasks))
                errors |= self.held_frames.scores(task, {each.name: each.model}, device)
        basin = unit.is2rs.basin
        return report(split, folder, unit.signal_name, basin, *compared, unit.history, errors, page)

    def _scoring(self, split: str) -> Scoring:
        """A split with the unit's force task."""
        unit, loader = self.train_eval_unit, self.loaders[split]
        rows = Split(
            name=split,
            rows=partial(rows_of, loader),
            count=row_count(loader),
            budget=atom_budget(loader),
            device=torch.device(get_device_for_local_rank()),
        )

        tasks = partial(tasks_of, of_run=unit.tasks)

        def field_of(model: nn.Module, batch: AtomicData) -> HydraForceField:
            return HydraForceField.unfrozen(model, tasks(model), batch).on(rows.device)

        kept = Kept(Path(self.job_config.run_dir) / BASE_RELAXED, self.base_digits)
        return Scoring(rows, field_of, tasks, kept)
