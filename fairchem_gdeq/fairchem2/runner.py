"""One runner for ``--mode train``, ``--mode validate`` and ``--mode predict``."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.calculators.calculator import Calculator
from fairchem.core.common import distutils
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.components.train.train_runner import TrainEvalRunner
from fairchem.core.units.mlip_unit.mlip_unit import UNIT_INFERENCE_CHECKPOINT
from fairchem.core.units.mlip_unit.utils import load_inference_model
from torch import nn
from torch.utils.data import DataLoader
from torchtnt.framework.callback import Callback
from tqdm import tqdm

from fairchem_gdeq.evaluation import (
    Score,
    baseline_rows,
    file_row,
    open_reference,
    unrelaxed_row,
    with_reference,
)
from fairchem_gdeq.fairchem2.bulk import Bulk, atom_budget, row_count, rows_of
from fairchem_gdeq.fairchem2.callbacks import KeepBest
from fairchem_gdeq.fairchem2.fields import HydraForceField, hydra_model
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.metrics import Record, order_by_sid, summarise, to_rows
from fairchem_gdeq.predictions import Journal, fingerprint, relax_all, write
from fairchem_gdeq.reference import ReferenceFile, add_forces
from fairchem_gdeq.report import plot_all, print_table

MODES = ("train", "validate", "predict")
UNRELAXED, BASE, TUNED = "unrelaxed X_0", "base", "tuned"


class GDEQRunner(TrainEvalRunner):
    """fairchem's training runner with evaluation and prediction beside it."""

    def __init__(
        self,
        mode: str,
        train_dataloader: DataLoader,
        eval_dataloader: DataLoader,
        test_dataloader: DataLoader,
        train_eval_unit: GDEQTrainer,
        split: str = "test",
        test: str = "test",
        checkpoint: str | None = None,
        baselines: Sequence[str] = (),
        reference: Calculator | str | None = None,
        callbacks: list[Callback] | None = None,
        max_epochs: int = 1,
    ) -> None:
        """
        Args:
            mode: ``train``, ``validate`` (scores of a split) or ``predict`` (its structures).
            train_dataloader: what is trained on.
            eval_dataloader: the validation split, which alone selects the reported epoch.
            test_dataloader: the held-out split of the final table.
            train_eval_unit: the trainer; its untrained model is the base.
            split: ``train``, ``val`` or that of ``test``, for validate and predict.
            test: name of the held-out split; result files carry it.
            checkpoint: an inference checkpoint to score; by default the run's best epoch.
            baselines: rows of the table besides: ``ase_fire``, ``ase_lbfgs``, on the base.
            reference: where FbT and AFbT come from: an ASE calculator, which is asked at the
                structures of every row, or a file with forces (``reference.ReferenceFile``), whose
                structures are a row of their own. None: there are no such columns.
            callbacks, max_epochs: as ``TrainEvalRunner``.

        Raises:
            ValueError: an unknown mode, split or baseline.
            FileNotFoundError: there is no such reference file.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
        self.loaders = {"train": train_dataloader, "val": eval_dataloader, test: test_dataloader}
        if split not in self.loaders:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(self.loaders)}")
        super().__init__(
            train_dataloader=train_dataloader,
            eval_dataloader=eval_dataloader,
            train_eval_unit=train_eval_unit,
            callbacks=callbacks,
            max_epochs=max_epochs,
        )
        self.mode, self.split, self.test, self.checkpoint = mode, split, test, checkpoint
        self.baselines = baseline_rows(baselines, train_eval_unit.is2rs)
        self.reference = open_reference(reference)
        # The unit loads a resumed state lazily, when training starts: this is the base.
        self.base = copy.deepcopy(hydra_model(train_eval_unit.model))

    @property
    def results(self) -> Path:
        """Folder of tables, plots, predictions and the best checkpoint."""
        return Path(self.job_config.metadata.results_dir)

    def run(self) -> None:
        """Do what ``mode`` says."""
        self.results.mkdir(parents=True, exist_ok=True)
        {"train": self.train, "validate": self.validate, "predict": self.predict}[self.mode]()

    # ---- modes -------------------------------------------------------------------------------

    def train(self) -> None:
        """Train (or go on), then score unrelaxed, base and best epoch on the test split."""
        for callback in self.callbacks:
            if isinstance(callback, KeepBest):
                callback.folder = self.results / "best"
        super().run()
        unit = self.train_eval_unit
        base = self._relaxed("val", self.base, BASE)
        unit.history.base = summarise(base, unit.is2rs.basin)
        self.score(self.test, self.results)

    def validate(self) -> None:
        """Score the split; files go to ``results/validate``, those of the training run stay."""
        self.score(self.split, self.results / "validate")

    def predict(self) -> None:
        """Relax the split and write ``<split>.extxyz`` and ``<split>.npz`` (see ``submission``)."""
        name, model = self.tuned() or (BASE, self.base)
        logging.info(f"predicting split {self.split} with the {name} model")
        folder = self.results / "predictions"
        bulk, loader = self._bulk(self.split, model), self.loaders[self.split]
        made_by = fingerprint(model, bulk.is2rs)
        journal = Journal(folder, self.split, made_by, distutils.get_rank())
        with tqdm(total=row_count(loader), desc=f"predict {self.split}") as bar:
            images = relax_all(journal, rows_of(loader), bulk, bar)
        images = self._all_ranks(images)
        if distutils.is_master():
            write(folder, self.split, images)
            missed = sum(not a.info["converged"] for a in images)
            failed = sum(a.info["failed"] for a in images)
            print(
                f"{len(images)} structures ({missed} not converged"
                + (f", {failed} of them for want of memory" if failed else "")
                + f") in {folder}"
            )
        distutils.synchronize()
        journal.remove()

    # ---- scoring -----------------------------------------------------------------------------

    def tuned(self) -> tuple[str, nn.Module] | None:
        """The model to score, from ``checkpoint`` or the run's best epoch; None if there is none.

        Raises:
            FileNotFoundError: ``checkpoint`` is given and does not exist.
        """
        path = self.results / "best" / UNIT_INFERENCE_CHECKPOINT
        if self.checkpoint is not None:
            path = Path(self.checkpoint)
            if not path.is_file():
                raise FileNotFoundError(f"checkpoint {path}: no such file (an inference_ckpt.pt)")
        if not path.is_file():
            logging.warning(
                f"{path}: no tuned model yet, so only the base is used. Train first with "
                "--mode train, or name a model with runner.checkpoint=PATH."
            )
            return None
        model = load_inference_model(str(path), use_ema=True, return_checkpoint=False)
        return TUNED, hydra_model(model)

    def score(self, split: str, folder: Path) -> dict[str, dict[str, float]]:
        """Score a split, a row for each model and baseline; table, JSON and plots."""
        unit = self.train_eval_unit
        tuned = self.tuned()
        file = self.reference if isinstance(self.reference, ReferenceFile) else None
        calculator = None if file else self.reference
        rows = {UNRELAXED: unrelaxed_row(unit.is2rs)} | self.baselines
        if file:
            rows |= dict([file_row(unit.is2rs, file)])
        if calculator:
            rows = {name: with_reference(row, calculator) for name, row in rows.items()}
        records = {UNRELAXED: self._scored(split, rows.pop(UNRELAXED), UNRELAXED)}
        records[BASE] = self._relaxed(split, self.base, BASE, calculator)
        if tuned:
            records[TUNED] = self._relaxed(split, tuned[1], TUNED, calculator)
        records |= {name: self._scored(split, row, name) for name, row in rows.items()}
        scores = {name: summarise(rows, unit.is2rs.basin) for name, rows in records.items()}
        if distutils.is_master():
            self._write(split, folder, scores, records)
        return scores

    def _scored(self, split: str, row: Score, name: str) -> list[Record]:
        """Records of the split in a row that has the base and no flight."""
        unit, device = self.train_eval_unit, get_device_for_local_rank()
        self.base.to(device).eval()
        found: list[Record] = []
        for batch in tqdm(self.loaders[split], desc=f"{name} on {split}", leave=False):
            batch = batch.to(device)
            found += row(HydraForceField.follow(self.base, unit.tasks, batch), batch)[0]
        return order_by_sid(self._all_ranks(found))

    def _bulk(self, split: str, model: nn.Module) -> Bulk:
        """What relaxes rows of the split with a model."""
        unit, device = self.train_eval_unit, get_device_for_local_rank()
        model.to(device).eval()
        return Bulk(unit.is2rs, model, unit.tasks, atom_budget(self.loaders[split]), device)

    def _relaxed(
        self, split: str, model: nn.Module, name: str, calculator: Calculator | None = None
    ) -> list[Record]:
        """Records of the split as a model relaxes it, with a calculator's forces if one is given."""
        bulk, loader = self._bulk(split, model), self.loaders[split]
        found: list[Record] = []
        with tqdm(total=row_count(loader), desc=f"{name} on {split}", leave=False) as bar:
            for relaxed in bulk.relax(rows_of(loader)):
                record = relaxed.record
                if calculator is not None:
                    (record,) = add_forces([record], [relaxed.to_ase()], calculator)
                found.append(record)
                bulk.show(bar)
        if bulk.failed:
            logging.warning(
                f"{name} on {split}: memory did not suffice for {bulk.failed} structures"
            )
        return order_by_sid(self._all_ranks(found))

    def _all_ranks(self, items: list[Any]) -> list[Any]:
        """The items of every rank, in rank order."""
        if distutils.get_world_size() == 1:
            return items
        parts: list[Any] = [None] * distutils.get_world_size()
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def _write(
        self,
        split: str,
        folder: Path,
        scores: Mapping[str, dict[str, float]],
        records: Mapping[str, list[Record]],
    ) -> None:
        unit = self.train_eval_unit
        stored = {
            "split": split,
            "signal": unit.signal,
            "scores": scores,
            "records": {name: to_rows(rows) for name, rows in records.items()},
            "history": unit.history.state(),
            "best_epoch": unit.history.best,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.json").write_text(json.dumps(stored, indent=1) + "\n")
        print_table(split, scores, unit.history, unit.is2rs.basin)
        pictures = plot_all(folder, split, scores, records, unit.history)
        print(f"\nresults: {folder / f'{split}.json'}")
        for picture in pictures:
            print(f"picture: {picture}")

    # ---- interruption ------------------------------------------------------------------------

    def save_state(self, checkpoint_location: str, is_preemption: bool = False) -> bool:
        """As fairchem's; its signal handler makes the folder that its own code expects absent."""
        if is_preemption and distutils.is_master():
            folder = Path(checkpoint_location)
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
            saved = super().save_state(checkpoint_location, is_preemption)
            logging.info("interrupted: start the same command again to go on from the checkpoint")
            return saved
        return super().save_state(checkpoint_location, is_preemption)
