"""Forces of fairchem 2 beside the signal: labelled frames, or the base's own where there are none."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Protocol

import torch
from fairchem.core.common import distutils
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset, create_concat_dataset
from fairchem.core.datasets.samplers.max_atom_distributed_sampler import (
    MaxAtomDistributedBatchSampler,
)
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss
from fairchem.core.units.mlip_unit.mlip_unit import Task, compute_loss, mt_collater_adapter
from omegaconf import OmegaConf
from torch import Tensor

from fairchem_gdeq.data import lmdb_file
from fairchem_gdeq.data.frames import for_fairchem
from fairchem_gdeq.data.rows import BadRow
from fairchem_gdeq.fairchem2.conservative import energy_gradient, require_second_derivatives
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.loaders import left_out
from fairchem_gdeq.relax import SignalReport
from fairchem_gdeq.training.force_errors import Compared, compared
from fairchem_gdeq.training.frame_checks import given_settings, looked_at
from fairchem_gdeq.training.replay import ReplaySettings, on_the_way, require_forces
from fairchem_gdeq.training.run_frames import name_of


class Frames(Protocol):
    """Labelled frames as fairchem's data sets give them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AtomicData: ...

    def get_metadata(self, key: str, indices: list[int]) -> Sequence[int]:
        """Numbers of atoms."""
        ...


@dataclass(frozen=True)
class ForceReplay(ReplaySettings):
    """``ReplaySettings`` for fairchem 2; frames are of any format that fairchem's ``ase_db`` opens.

    Attributes:
        dataset: the name by which the model knows its data.
        max_atoms: of a batch of frames.
        seed: of the order of frames.
    """

    dataset: str
    max_atoms: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(max_atoms=1)

    def open(
        self, task: Task, base: HydraModel, frames: Frames | None = None
    ) -> FrameBatches | BaseBatches:
        """The batches, for a model's force task; of ``frames``, where they are open already.

        Raises:
            ValueError: frames that have no forces, or none at all.
            FileNotFoundError: there is no such folder.
        """
        if task.loss_fn is None:  # a checkpoint for inference alone
            task = replace(task, loss_fn=DDPMTLoss(L2NormLoss(), reduction="mean"))
        if self.of_base:
            return BaseBatches(base, task, self.seed)
        return FrameBatches(self, task, frames)


def open_replay(
    src: str | Sequence[str] | None,
    dataset: str,
    max_atoms: int,
    seed: int = 0,
    **given: float | None,
) -> ForceReplay | None:
    """``ForceReplay``, or None where there is no ``src``; for configs.

    Args:
        src: as there, or as ``given_settings``.
        dataset, max_atoms, seed: as there.
        given: the other settings; None is their default.

    Raises:
        ValueError: as ``given_settings``.
    """
    chosen = given_settings(src, given)
    if src is None or chosen is None:
        return None
    return ForceReplay(src, dataset, max_atoms, seed=seed, **chosen)  # type: ignore[arg-type]


def predicted_forces(model: HydraModel, task: Task, batch: AtomicData) -> Tensor:
    """A model's forces [n, 3] of a batch of frames, eV/Angstrom, the same at every call."""
    return HydraForceField.unfrozen(model, [task], batch)(batch.pos)


def forces_loss(model: HydraModel, task: Task, batch: AtomicData) -> Tensor:
    """fairchem's loss of a batch's forces, in units of the task."""
    with energy_gradient(model, batch):
        predicted = model(batch)
    require_second_derivatives(model, predicted[task.name][task.property])
    return sum(compute_loss([task], predicted, batch).values())  # type: ignore[return-value]


class FrameBatches:
    """Batches of labelled frames, by their number in the run: a resumed run meets the same."""

    def __init__(
        self,
        settings: ForceReplay,
        task: Task,
        frames: Frames | None = None,
        shared: bool = True,
    ) -> None:
        """
        Args:
            settings: where frames are, and their batches.
            task: the model's force task.
            frames: those, where they are open already.
            shared: each rank has batches of its own; else each has all of them.

        Raises:
            ValueError: frames that have no forces, or none at all.
        """
        folders = settings.folders
        self.task, self.source = task, ", ".join(folders)
        self.frames: Frames = frames or open_frames(folders, settings.dataset)
        world = distutils.get_world_size() if shared else 1
        try:
            self.sampler = MaxAtomDistributedBatchSampler(
                self.frames,
                settings.max_atoms,
                num_replicas=world,
                rank=distutils.get_rank() if shared else 0,
                seed=settings.seed,
                shuffle=True,
            )
        except AssertionError as error:  # fairchem's, which does not say of what
            raise ValueError(
                f"frames {self.source}: {len(self.frames)} frames are fewer than {world} batches of "
                f"max_atoms={settings.max_atoms}, one a rank. Lower forces.max_atoms, or add frames"
            ) from error
        every = (self._read(i) for i in looked_at(len(self.frames)))
        require_forces(((name_of(one), getattr(one, "forces", None)) for one in every), folders)
        if text := left_out(self.sampler):
            logging.warning(f"frames {self.source}: {text}. They are left out; raise max_atoms")
        if not any(self.sampler.all_batches):
            raise ValueError(
                f"frames {', '.join(folders)}: none is within forces.max_atoms={settings.max_atoms}"
            )
        self._collate = mt_collater_adapter([task])
        self._epoch, self._order = -1, list[list[int]]()

    def __call__(self, number: int, batch: AtomicData, report: SignalReport | None) -> AtomicData:
        """The ``number``-th batch of the run, whatever the signal's."""
        epoch, place = divmod(number, len(self.sampler))
        if epoch != self._epoch:
            self.sampler.set_epoch_and_start_iteration(epoch, 0)
            self._epoch, self._order = epoch, list(self.sampler)
        return self.of(self._order[place])

    def _read(self, index: int) -> AtomicData:
        """A frame.

        Raises:
            ValueError: fairchem cannot make a data object of it, or not of all that it says.
        """
        try:
            return self.frames[index]
        except BadRow as error:
            raise ValueError(f"frames {_place(self.frames, index)}, {error}") from error
        except Exception as error:  # fairchem's assertions, and whatever ASE and NumPy raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"frames {_place(self.frames, index)} cannot be read ({reason}): expected finite "
                "positions, a cell, and forces of each of its atoms. Mend it, or leave it out"
            ) from error

    def of(self, indices: Sequence[int]) -> AtomicData:
        """Frames of these numbers as a batch."""
        return self._collate([self.frames[i] for i in indices])


class BaseBatches:
    """The step's structures on their way, with the forces that the untrained model has there."""

    def __init__(self, base: HydraModel, task: Task, seed: int) -> None:
        self.base, self.task, self.seed = (
            copy.deepcopy(base).eval().requires_grad_(False),
            task,
            seed,
        )

    def __call__(self, number: int, batch: AtomicData, report: SignalReport | None) -> AtomicData:
        """Each structure somewhere on the straight line from X_0 to X_K."""
        assert report is not None
        moved = batch.clone()
        moved.pos = on_the_way(batch, report, number, self.seed)
        moved.dataset_name = [self.task.datasets[0]] * len(batch.natoms)
        with torch.no_grad():
            labels = predicted_forces(self.base.to(moved.pos.device), self.task, moved)
        moved[self.task.name] = labels
        return moved


# ---- frames ----------------------------------------------------------------------------------


def open_frames(folders: Sequence[str], dataset: str) -> ConcatDataset:
    """Frames of ASE databases as fairchem opens them for force training.

    Raises:
        DamagedFile: a file is no LMDB or cut short.
        ValueError: fairchem finds no frames, or not how many atoms they have.
    """
    names = [f"part{i}" for i in range(len(folders))]
    splits = {name: {"src": folder} for name, folder in zip(names, folders, strict=True)}
    frames = {
        "splits": splits,
        "format": "ase_db",
        "transforms": {"common_transform": {"dataset_name": dataset}},
    }
    ratios = {f"frames.{name}": 1.0 for name in names}
    for file in (file for folder in folders for file in glob(f"{folder}/*.aselmdb")):
        lmdb_file.check(Path(file))
    try:
        opened = create_concat_dataset(
            OmegaConf.create({"frames": frames}),
            OmegaConf.create({"sampling": {"type": "explicit", "ratios": ratios}}),
        )
        opened.get_metadata("natoms", list(range(len(opened))))
    except Exception as error:  # fairchem's, and whatever NumPy makes of a damaged metadata.npz
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"frames {', '.join(folders)}: expected ASE databases (*.aselmdb) with a metadata.npz of "
            f"their numbers of atoms, found what fairchem cannot open ({reason}). Write them anew"
        ) from error
    for part in opened.datasets:
        part.dataset.atoms_transform = for_fairchem
    return opened


def _place(frames: Frames, index: int) -> str:
    """Folder and number there, from 0, of a frame, which fairchem has mixed with the others."""
    if not isinstance(frames, ConcatDataset):
        return f"number {index}"
    which, place = frames._get_dataset_and_sample_index(index)
    subset = frames.datasets[which]
    return f"{subset.config['src']}: frame number {subset.indices[place]}"


def compared_with(
    model: HydraModel,
    batches: FrameBatches,
    chosen: Iterable[Sequence[int]],
    device: torch.device,
) -> Iterator[Compared]:
    """Batches of frames, each given by their numbers, beside a model's forces on a device."""
    for indices in chosen:
        batch = batches.of(indices).to(device)
        with torch.no_grad():
            predicted = predicted_forces(model, batches.task, batch)
        yield compared(batch, predicted, batch[batches.task.name])
