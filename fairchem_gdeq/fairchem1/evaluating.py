"""fairchem 1's trainer with a base, scores and checkpoints of ours: a run without its steps."""

from __future__ import annotations

import copy
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import update_config
from fairchem.core.trainers import OCPTrainer
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_gdeq.evaluation.fingerprint import fingerprint
from fairchem_gdeq.evaluation.metric import add_metrics
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.scoring import BASE, BASE_RELAXED, EvaluatedModel, Kept, Scoring
from fairchem_gdeq.fairchem1.base import load_averaged, read_checkpoint, require_model
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.settings import Settings
from fairchem_gdeq.fairchem1.splits import CHECKED, LMDB_FORMATS, split_of
from fairchem_gdeq.frozen.forward import full_precision
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.history import STATE, History
from fairchem_gdeq.training.in_use import cannot_write, unwritten, whole_file
from fairchem_gdeq.training.ranks import share_cores

PRIMARY = "delta_q_mean"
BEST = "best_checkpoint.pt"
# Of a trainer's config, by split.
SECTIONS = {"train": "dataset"} | {name: f"{name}_dataset" for name in ("val", "test", "relax")}


class EvaluatingTrainer(OCPTrainer):
    """Opens the base and the data sets, relaxes splits and scores them, keeps history and checkpoints.

    Logging, checkpoints, resume and EMA are fairchem's. What is saved names fairchem's own trainer
    ``ocp``.
    """

    def __init__(
        self,
        task: dict[str, Any],
        model: dict[str, Any],
        timestamp_id: str | None = None,
        inference_only: bool = False,
        amp: bool = False,
        **fairchems: Any,
    ) -> None:
        """As ``OCPTrainer``, with ``Settings`` in ``task``.

        ``amp``, which many of fairchem's own configs set, is not used, and the log says so: forces
        of half precision have no fixed point to the accuracy that eq. 4 needs.

        Outputs, loss functions and normalizers are those of the base, so that a tuned checkpoint
        opens wherever the base does.

        Raises:
            ValueError: a key or value of ``task`` that cannot be meant, no metric at a path, or a base
                of another model.
            FileNotFoundError: there is no such base.
        """
        share_cores()
        self.settings = Settings.read(task)
        add_metrics(self.settings.metrics)
        self.is2rs, self.signal = self.settings.is2rs, self.settings.make_signal()
        self.history, self.adjoints = History(self.settings.keep), Adjoints()
        if amp:
            logging.warning("amp: true is not used: relaxations are computed in float32")
        if not inference_only:
            path = self.settings.base
            trust = self.settings.trust_files
            self._base_checkpoint = read_checkpoint(path, self.settings.base_hint, trust)
            stored = update_config(self._base_checkpoint["config"])
            require_model(path, stored, model)
            fairchems |= {key: stored[key] for key in ("outputs", "loss_functions")}
            fairchems["evaluation_metrics"] = {"primary_metric": PRIMARY}
        super().__init__(
            task=task,
            model=model,
            timestamp_id=timestamp_id or self.settings.run_id,
            inference_only=inference_only,
            amp=False,  # neither autocast nor a scaler
            **fairchems,
        )

    # ---- loading -----------------------------------------------------------------------------

    def load_datasets(self) -> None:
        """As fairchem's, with our checked reader in place of its readers of IS2RE/IS2RS LMDBs."""
        for split, section in SECTIONS.items():
            config = self.config[section]
            inherits = split != "train" and config.get("use_train_settings", True)
            form = config.get("format", None if inherits else "lmdb")
            if config and form in LMDB_FORMATS:
                config["format"] = CHECKED
        super().load_datasets()

    def load_references_and_normalizers(self) -> None:
        """Those of the base, with its weights; it is also kept for comparison."""
        load_averaged(self, self.settings.base, self._base_checkpoint)
        del self._base_checkpoint
        self.base = EvaluatedModel(BASE, copy.deepcopy(self._unwrapped_model), self.is2rs)
        self._base_digits = fingerprint(self.base.model)

    # ---- evaluation --------------------------------------------------------------------------

    def _denorm(self, forces: Tensor) -> Tensor:
        """The model's forces [n, 3] in eV/Angstrom, by the base's normalizer where it has one."""
        return self.normalizers["forces"](forces) if "forces" in self.normalizers else forces

    def field_of(self, model: nn.Module, batch: Batch) -> OCPForceField:
        """A model on a batch as a field that builds its graph anew at every evaluation."""
        return OCPForceField.unfrozen(model, batch, self._denorm).on(self.device)

    def scoring(self, split: str) -> Scoring:
        """``train``, ``val``, ``test`` or ``relax``; files of it are named as its folder.

        Raises:
            ValueError: the config has no such data set.
        """
        loader = getattr(self, f"{split}_loader", None)
        if loader is None:
            raise ValueError(f"the config has no data set for this: give it dataset.{split}.src")
        source = self.config[SECTIONS[split]]["src"]
        name = Path(source).stem if isinstance(source, str) else split
        rows = split_of(name, loader, self.settings.eval_max_atoms, self.device)
        beside = self._folder.parents[1] / BASE_RELAXED
        kept = None if self.is_debug else Kept(beside, self._base_digits)
        return Scoring(rows, self.field_of, lambda model: self.normalizers, kept)

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict[str, Any]:
        """Relax a split with the averaged weights and score it; logged, and kept in the history."""
        self.model.eval()
        if self.ema:
            self.ema.store()
            self.ema.copy_to()
        now = EvaluatedModel(f"epoch {self.epoch:g}", self._unwrapped_model, self.is2rs)
        with full_precision(self.device):
            records = self.scoring(split).relaxed(now)
        if self.ema:
            self.ema.restore()
        scores = summarise(records, self.is2rs.basin)
        self.history.add_epoch(self.epoch, scores, records, self.is2rs.basin)
        logging.info(", ".join(f"{key}: {value:.4f}" for key, value in scores.items()))
        if self.logger is not None:
            self.logger.log(scores | {"epoch": self.epoch}, step=self.step, split=split)
        return {key: {"metric": value} for key, value in scores.items()}

    def update_best(
        self, primary_metric: str, val_metrics: dict[str, Any], disable_eval_tqdm: bool = True
    ) -> None:
        """Save ``best_checkpoint.pt`` where the epoch is the best so far (``history.KEEP``).

        fairchem's own takes the largest value for the best, and predicts the test split each time.
        """
        self._save_history()  # the checkpoint of this step is older than its scores
        best = self.history.best
        if best is not None and best["epoch"] == self.history.epochs[-1]["epoch"]:
            self.best_val_metric = best[primary_metric]
            self.save(val_metrics, checkpoint_file=BEST, training_state=False)
            distutils.synchronize()  # the others read it, too

    # ---- checkpoints -------------------------------------------------------------------------

    def save(
        self,
        metrics: dict[str, Any] | None = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """fairchem's checkpoint; beside it the history's epochs, and the adjoints of each rank.

        fairchem writes over the old one. Here the new one takes its place when it is whole.

        Raises:
            OSError: it cannot be written, and the old one stays.
        """
        wanted = self._folder / checkpoint_file
        part = f"{checkpoint_file}.part"
        try:
            written = super().save(metrics, part, training_state)
            if training_state:
                if not self.is_debug:
                    self.adjoints.save(self._folder)
                self._save_history()
        except (OSError, RuntimeError) as error:
            if not unwritten(error):
                raise
            raise OSError(cannot_write(wanted, error)) from error
        if written is None:
            return None
        os.replace(self._folder / part, wanted)
        return str(wanted)

    def _save_history(self) -> None:
        if self._writes:
            with whole_file(self._folder / STATE) as part:
                torch.save({"history": self.history.state(), "epochs": self.epochs}, part)

    @cached_property
    def epochs(self) -> int:
        """That the run was begun with. One that is made longer keeps the phases that it has had."""
        return int(self.config["optim"]["max_epochs"])

    @property
    def warm_start(self) -> bool:
        """Whether adjoints are kept for the next visit: there is none in a single epoch."""
        return self.settings.warm_start and self.config["optim"]["max_epochs"] > 1

    @property
    def _folder(self) -> Path:
        """Where the run's checkpoints are."""
        return Path(self.config["cmd"]["checkpoint_dir"])

    @property
    def _writes(self) -> bool:
        return not self.is_debug and distutils.is_master()

    def load_checkpoint(
        self,
        checkpoint_path: str,
        checkpoint: dict[str, Any] | None = None,
        inference_only: bool = False,
    ) -> None:
        """As fairchem's; to go on with a training, with what is in the file beside it.

        Raises:
            ValueError: a training is to go on from something else than a run of this trainer.
        """
        state = os.path.join(os.path.dirname(checkpoint_path), STATE)
        if not inference_only and not os.path.isfile(state):
            raise ValueError(
                f"checkpoint {checkpoint_path}: not of a run of this trainer ({state} is missing). "
                "A potential to start from is named with --task.base=PATH"
            )
        if checkpoint is None:  # fairchem would open it by itself
            checkpoint = read_checkpoint(checkpoint_path, "", self.settings.trust_files)
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        if not inference_only:
            stored = open_checkpoint(state)
            self.history.load(stored["history"])
            if Path(checkpoint_path).resolve().parent == self._folder.resolve():
                self.epochs = stored.get("epochs", self.epochs)
            if self._writes and "steps" in stored["history"]:  # from before the file of steps
                done = [s for s in stored["history"]["steps"] if s["train/step"] <= self.step]
                self.history.take_over(self._folder, done)
            elif self._writes:
                self.history.open(self._folder, self.step, first=1)
            if self.warm_start:
                self.adjoints.load(Path(checkpoint_path).parent)
