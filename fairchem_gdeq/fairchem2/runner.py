"""One runner for ``--mode train``, ``--mode validate`` and ``--mode predict``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase.calculators.calculator import Calculator
from fairchem.core.common import distutils
from fairchem.core.common.distutils import get_device_for_local_rank
from torch.utils.data import DataLoader
from torchtnt.framework.callback import Callback

from fairchem_gdeq.audit import Audit, Auditor, audit, potential_of
from fairchem_gdeq.diagnose import Probe, cost_of_step, diagnose
from fairchem_gdeq.evaluation.fingerprint import fingerprint
from fairchem_gdeq.evaluation.metric import add_metrics
from fairchem_gdeq.evaluation.rows import baseline_rows, open_reference
from fairchem_gdeq.evaluation.scoring import BASE
from fairchem_gdeq.fairchem2 import before
from fairchem_gdeq.fairchem2.callbacks import KeepBest
from fairchem_gdeq.fairchem2.evaluated import evaluated, no_tuned, tasks_of
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.held_frames import HeldFrames
from fairchem_gdeq.fairchem2.interruption import ending, name_newest
from fairchem_gdeq.fairchem2.loaders import atom_budget, left_out
from fairchem_gdeq.fairchem2.scoring_runner import ScoringRunner
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.page.write import name_of
from fairchem_gdeq.training.in_use import in_use
from fairchem_gdeq.training.ranks import from_the_first, share_cores
from fairchem_gdeq.training.run_frames import elements_of
from fairchem_gdeq.training.same_run import (
    keep_settings,
    require_nothing_done,
    require_same_run,
    warn_of_another,
)
from fairchem_gdeq.training.whole import newest_whole, remember

MODES = ("train", "validate", "predict", "diagnose", "audit")


class GDEQRunner(ScoringRunner):
    """fairchem's training runner with evaluation and prediction beside it."""

    _stopped = False  # by a signal of a local run
    _going_on: Path | None = None  # a checkpoint

    def __init__(
        self,
        mode: str,
        train_dataloader: DataLoader[Any],
        eval_dataloader: DataLoader[Any],
        test_dataloader: DataLoader[Any],
        train_eval_unit: GDEQTrainer,
        split: str = "test",
        test: str = "test",
        checkpoint: str | None = None,
        baselines: Sequence[str] = (),
        reference: Calculator | str | None = None,
        metrics: Sequence[str] = (),
        callbacks: list[Callback] | None = None,
        max_epochs: int = 1,
        trust_files: bool = False,
        held_frames: HeldFrames | None = None,
        diagnose: Probe | None = None,
        audit: Audit | None = None,
        settings: str | None = None,
    ) -> None:
        """
        Args:
            mode: ``train``, ``validate`` (scores of a split), ``predict`` (its structures),
                ``diagnose`` (can tuning help?) or ``audit`` (what did it cost?).
            train_dataloader: what is trained on.
            eval_dataloader: the validation split, which alone selects the reported epoch.
            test_dataloader: the held-out split of the final table.
            train_eval_unit: the trainer; its untrained model is the base.
            split: ``train``, ``val`` or that of ``test``, for validate and predict.
            test: name of the held-out split; result files carry it.
            checkpoint: an inference checkpoint to score, or ``base``; by default the run's best epoch.
            baselines: rows of the table besides: ``ase_fire``, ``ase_lbfgs``, on the base.
            reference: where FbT and AFbT come from: an ASE calculator, which is asked at the
                structures of every row, or a file with forces (``reference.ReferenceFile``), whose
                structures are a row of their own. None: there are no such columns.
            metrics: paths of further metrics (``evaluation.metric.add_metrics``).
            callbacks, max_epochs: as ``TrainEvalRunner``.
            trust_files: as ``base.open_inference``, for ``checkpoint``.
            held_frames: labelled frames on which base and tuned model have a force error in the table.
            diagnose: how structures are examined by ``--mode diagnose``; None has the defaults.
            audit: what ``--mode audit`` looks at.
            settings: what decides the run's numbers (``same_run.settings_of``), with which alone its
                folder goes on; ``fairchem -c`` puts it here. None: nothing is compared.

        Raises:
            ValueError: an unknown mode, split, baseline or metric, or an evaluated split with
                structures that fairchem's sampler would leave out.
            FileNotFoundError: there is no such reference file.
        """
        share_cores()
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
        self.loaders = {"train": train_dataloader, "val": eval_dataloader, test: test_dataloader}
        if split not in self.loaders:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self.loaders)}")
        for name, loader in self.loaders.items():
            if text := left_out(loader.batch_sampler):
                if name != "train":
                    raise ValueError(f"split {name}: {text}. Raise eval_max_atoms.")
                logging.warning(
                    f"split train: {text}. They are left out; raise max_atoms to train on them."
                )
        super().__init__(
            train_dataloader=train_dataloader,
            eval_dataloader=eval_dataloader,
            train_eval_unit=train_eval_unit,
            callbacks=callbacks,
            max_epochs=max_epochs,
        )
        self.mode, self.split, self.test, self.checkpoint = mode, split, test, checkpoint
        baseline_rows(baselines, train_eval_unit.is2rs)  # refuses unknown ones before the training
        self.baselines, self.trust_files = baselines, trust_files
        self.held_frames = held_frames
        self.probe, self.audited, self.settings = diagnose or Probe(), audit, settings
        self.reference = open_reference(reference)
        self._asked: str | None = None
        add_metrics(metrics)
        # The unit loads a resumed state lazily, when training starts: this is the base.
        base = copy.deepcopy(hydra_model(train_eval_unit.model))
        task = train_eval_unit.is2rs.without_decoder
        self.base_digits = fingerprint(base)
        self.base = evaluated(BASE, base, task, train_eval_unit.compiled)

    @property
    def _checkpoints(self) -> Path:
        """The run's folder of checkpoints."""
        return Path(self.job_config.metadata.checkpoint_dir)

    def run(self) -> None:
        """Do what ``mode`` says.

        Raises:
            SystemExit: a signal has interrupted it.
            ValueError, OSError: as ``in_use``.
        """
        purpose = self.mode if self.mode == "train" else f"{self.mode}_{self.split}"
        with ending(lambda: self._stopped), in_use(self.results.parent, purpose):
            self.results.mkdir(parents=True, exist_ok=True)
            if self.mode == "train":
                self._check_folder()
            self._check_structures()
            getattr(self, self.mode)()

    # ---- modes -------------------------------------------------------------------------------

    def train(self) -> None:
        """Train (or go on), then score unrelaxed, base and best epoch on the test split.

        Raises:
            ValueError: frames that the run should not train on.
        """
        for callback in self.callbacks:
            if isinstance(callback, KeepBest):
                callback.folder = self.results / "best"
        self._check_frames()
        self.train_eval_unit.score_base = partial(self._scoring("val").relaxed, self.base)
        distutils.synchronize()  # before the settings are written anew, all ranks have read them
        if self.settings is not None and distutils.is_master():
            keep_settings(self.settings, self._checkpoints)
        if self._going_on is not None:
            logging.info(f"going on from the checkpoint {self._going_on}")
            super().load_state(str(self._going_on))
        super().run()
        self.score(self.test, self.results)

    def _check_folder(self) -> None:
        """Find what the run goes on from, before anything is written.

        Raises:
            ValueError: as ``require_same_run``, ``newest_whole`` and ``require_nothing_done``.
        """
        if self.settings is not None:
            require_same_run(self.settings, self._checkpoints)
        found = from_the_first(lambda: newest_whole(self._checkpoints, self._asked))
        if found is None or not self.train_eval_unit.is_own(found):
            require_nothing_done(self.results, self._checkpoints)
        distutils.synchronize()  # all ranks have looked
        if found is not None and distutils.is_master() and not self.train_eval_unit.is_own(found):
            remember(self._checkpoints, found)
        self._going_on = found

    def _check_structures(self) -> None:
        """Refuse elements that the base does not know, and a reference that lacks a structure."""
        for name in before.structures_in(self.mode, self.split, self.loaders):
            rows: Any = self.loaders[name].dataset
            before.require_known_elements(self.base.model, f"split {name}", rows)
        if self.mode in ("train", "validate"):
            scored: Any = self.loaders[self.test if self.mode == "train" else self.split].dataset
            before.require_reference(self.reference, scored)

    def _check_frames(self) -> None:
        """Refuse frames that the run should not train on, and held-out frames without forces."""
        rows = {name: loader.dataset for name, loader in self.loaders.items()}
        before.check_all_frames(self.train_eval_unit, self.base.model, rows, self.held_frames)

    def validate(self) -> None:
        """Score the split; files go to ``results/validate``, those of the training run stay."""
        if self.checkpoint is None and self.settings is not None:
            warn_of_another(self.settings, self._checkpoints)
        self.score(self.split, self.results / "validate", name_of(self.split))

    def predict(self) -> None:
        """Relax the split and write ``<split>.extxyz`` and ``<split>.npz`` (see ``submission``).

        Raises:
            ValueError: there is no tuned model, and the base is not asked for.
        """
        chosen = self.tuned()
        if chosen is None and self.checkpoint != BASE:
            raise ValueError(no_tuned(self.results))
        chosen = chosen or self.base
        logging.info(f"predicting split {self.split} with the {chosen.name} model")
        self._scoring(self.split).predict(chosen, self.results / "predictions")

    def diagnose(self) -> None:
        """Say whether tuning can help on the training split; files go to ``results/diagnose``."""
        unit, loader = self.train_eval_unit, self.loaders["train"]

        def step() -> int:
            batch = next(iter(loader)).to(get_device_for_local_rank())
            return len(unit.differentiate(batch)[0].diverged)

        cost = partial(cost_of_step, step, unit.model)
        frames = unit.forces is not None and not unit.forces.of_base
        scoring = self._scoring("train")
        budget = atom_budget(self.loaders["val"])  # nothing is differentiated but in the step
        scoring = replace(scoring, split=replace(scoring.split, budget=budget))
        first = unit.optimizer.param_groups[0]
        lr = first.get("initial_lr", first["lr"])
        diagnose(self.base, scoring, self.probe, lr, frames, cost, self.results)

    def audit(self) -> None:
        """Say what tuning cost beyond the task; files go to ``results/audit``.

        Raises:
            ValueError: there is no tuned model, or the runner was not told what to look at.
        """
        tuned, unit = self.tuned(), self.train_eval_unit
        if tuned is None or self.audited is None:
            raise ValueError("--mode audit compares a tuned model with its base: checkpoint=PATH")
        device, dataset = torch.device(get_device_for_local_rank()), self.audited.dataset
        rows: dict[str, Any] = {name: loader.dataset for name, loader in self.loaders.items()}
        models = [
            potential_of(each, tasks_of(each.model, unit.tasks), dataset, device)
            for each in (self.base, tuned)
        ]
        known, budget = elements_of(rows["train"]), atom_budget(self.loaders[self.split])
        auditor = Auditor(models, self.audited, self.reference, rows[self.split], known, budget)
        audit(auditor, self.split, self.results)

    # ---- interruption ------------------------------------------------------------------------

    def load_state(self, checkpoint_location: str | None) -> None:
        """Remember what is asked for: it is opened once no other process is at work in the folder."""
        self._asked = checkpoint_location

    def save_state(self, checkpoint_location: str, is_preemption: bool = False) -> bool:
        """As fairchem's; where a signal asks for it, the newest checkpoint is linked."""
        save = partial(super().save_state, checkpoint_location, is_preemption)
        if not is_preemption:
            return save()
        self._stopped = str(self.job_config.scheduler.mode).upper().endswith("LOCAL")
        return name_newest(Path(checkpoint_location), save, self._stopped)
