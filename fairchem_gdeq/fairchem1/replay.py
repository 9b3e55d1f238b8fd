"""Forces of fairchem 1 beside the signal: labelled frames, or the base's own where there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.batches import plain
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.force_frames import FORMATS, open_frames
from fairchem_gdeq.frozen.forward import full_precision
from fairchem_gdeq.frozen.patching import swapped
from fairchem_gdeq.relax import SignalReport
from fairchem_gdeq.training.replay import Replay, ReplaySettings, on_the_way


@dataclass(frozen=True)
class ForceReplay(ReplaySettings):
    """``ReplaySettings`` for fairchem 1: the section ``forces`` of ``task``.

    Attributes:
        format: of the frames, ``ase_db`` or ``lmdb`` (the S2EF LMDBs of OC20 and OC22).
        batch_size: frames of a batch, on each rank; None is that of the structures.
    """

    format: str = "ase_db"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            self._at_least(batch_size=1)
        if self.format not in FORMATS:
            raise ValueError(f"forces.format={self.format!r}: choose one of {', '.join(FORMATS)}")

    def open(self, trainer: OCPTrainer, base: Callable[[Batch], OCPForceField]) -> Replay:
        """What a trainer needs for its steps.

        Args:
            trainer: its data sets, sampler, loss and normalizers are fairchem's.
            base: the untrained model on a batch.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: frames that have no forces, or a base without a loss of forces.
        """
        batches: FrameBatches | BaseBatches = (
            BaseBatches(base, trainer.config["cmd"]["seed"])
            if self.of_base
            else FrameBatches(self, trainer)
        )
        return Replay(self, batches, partial(forces_loss, trainer, loss_of_forces(trainer)))


# ---- the loss ----------------------------------------------------------------------------------


def loss_of_forces(trainer: OCPTrainer) -> list[tuple[str, dict[str, Any]]]:
    """The entries for forces among a trainer's ``loss_functions``, which are those of the base.

    Their coefficient, which weighs forces against energies, is 1: ``lambda_forces`` is in its place.

    Raises:
        ValueError: there are none.
    """
    found = [(name, how | {"coefficient": 1.0}) for name, how in trainer.loss_functions]
    if kept := [entry for entry in found if entry[0] == "forces"]:
        return kept
    raise ValueError(
        f"task.forces: the base has no loss of forces, only of {', '.join(name for name, _ in found)}. "
        "Take a base that was trained on forces, or leave task.forces.src=null"
    )


def forces_loss(
    trainer: OCPTrainer, losses: list[tuple[str, dict[str, Any]]], frames: Batch
) -> Tensor:
    """fairchem's loss of a batch's forces, in units of the base's normalizer, of a trainer's model.

    The model is run as for the signal: on neighbours that are right also where atoms are outside of
    the cell, with frames of edges that are not drawn anew, in evaluation mode and single precision.
    """
    frames = frames.to(trainer.device)
    field = OCPForceField.unfrozen(trainer._unwrapped_model, frames, _normalized)
    with full_precision(frames.pos.device), swapped(trainer, "loss_functions", losses):
        return OCPTrainer._compute_loss(trainer, {"forces": field(frames.pos)}, frames)


def _normalized(forces: Tensor) -> Tensor:
    """The model's own outputs, as the loss takes them."""
    return forces


# ---- batches -----------------------------------------------------------------------------------


class FrameBatches:
    """Batches of labelled frames, by their number in the run: a resumed run meets the same."""

    def __init__(self, settings: ForceReplay, trainer: OCPTrainer) -> None:
        self.frames = open_frames(settings.src, settings.format)
        self.source = ", ".join(settings.folders)
        self.size = settings.batch_size or trainer.config["optim"].get("batch_size", 1)
        self.sampler = trainer.get_sampler(self.frames, self.size, shuffle=True)
        self._collate = trainer.collater
        self._order: Iterator[Any] = iter(())
        self._next = -1  # the number of the batch that the order gives next

    def __call__(self, number: int, batch: Batch, report: SignalReport | None) -> Batch:
        """The ``number``-th batch of the run, whatever the signal's."""
        epoch, place = divmod(number, len(self.sampler))
        if place == 0 or number != self._next:
            self.sampler.set_epoch_and_start_iteration(epoch, place)
            self._order = iter(self.sampler)
        self._next = number + 1
        return self.of(next(self._order))

    def of(self, indices: Iterable[int]) -> Batch:
        """Frames of these numbers as a batch."""
        return self._collate([self.frames[int(i)] for i in indices])


class BaseBatches:
    """The step's structures on their way, with the forces that the untrained model has there."""

    def __init__(self, base: Callable[[Batch], OCPForceField], seed: int) -> None:
        self.base, self.seed = base, seed

    def __call__(self, number: int, batch: Batch, report: SignalReport | None) -> Batch:
        """Each structure somewhere on the straight line from X_0 to X_K."""
        assert report is not None
        moved = plain(batch)
        moved.pos = on_the_way(batch, report, number, self.seed)
        with torch.no_grad():
            moved.forces = self.base(moved)(moved.pos)
        return moved
