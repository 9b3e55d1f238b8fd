"""Frames of fairchem 2 beside the model and the structures of the run that is to train on them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel

from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.evaluation.task import to_ase
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.replay import FrameBatches, predicted_forces
from fairchem_gdeq.fairchem2.supported import element_limit
from fairchem_gdeq.training.frame_checks import (
    SAMPLE,
    Agreement,
    Elements,
    agreement,
    looked_at,
    require_no_overlap,
    require_unit,
)


class Rows(Protocol):
    """A data set of structures, of fairchem or of ours."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AtomicData: ...


def check_frames(
    batches: FrameBatches, base: HydraModel, trained: Iterable[int], held: Iterable[Named]
) -> None:
    """Refuse frames that a run should not train on, and say what is strange about them.

    Args:
        batches: the frames.
        base: the untrained model.
        trained: atomic numbers of the structures that the run trains on.
        held: structures that are held out.

    Raises:
        ValueError: an element that the model does not know, labels in another unit, or frames that
            are held-out structures; says which.
    """
    elements = Elements(batches.source, element_limit(hydra_model(base)))
    frames = []
    for index in looked_at(len(batches.frames)):
        row = batches.frames[index]
        frames.append(Named(_name(row), *to_ase(row, row.pos)))
        elements.add(frames[-1])
    elements.compare(trained)
    require_no_overlap(frames, held, batches.source)
    require_unit(agreement_with(batches, base), batches.source)


@torch.no_grad()
def agreement_with(batches: FrameBatches, base: HydraModel) -> Agreement:
    """How the labels of some frames compare with a model's forces; always the same frames."""
    device = torch.device(get_device_for_local_rank())
    model = copy.deepcopy(hydra_model(base)).to(device).eval()
    task, every = batches.task, batches.sampler.all_batches
    predicted, labels, count = [], [], 0
    for place in np.random.default_rng(0).permutation(len(every)):
        batch = batches.of(every[place]).to(device)
        free = batch.fixed == 0
        predicted.append(predicted_forces(model, task, batch)[free].cpu().numpy())
        labels.append(batch[task.name][free].cpu().numpy())
        count += len(batch.natoms)
        if count >= SAMPLE:
            break
    return agreement(np.concatenate(predicted), np.concatenate(labels))


def elements_of(rows: Rows) -> set[int]:
    """Atomic numbers of a data set's structures."""
    return {int(number) for i in looked_at(len(rows)) for number in rows[i].atomic_numbers.unique()}


def structures_of(split: str, rows: Rows) -> Iterator[Named]:
    """Start and target of each structure of a split, or frames, as messages call them."""
    for index in looked_at(len(rows)):
        row = rows[index]
        name = f"{_name(row)} in {split}"
        if "pos_relaxed" not in row:
            yield Named(name, *to_ase(row, row.pos))
            continue
        yield Named(f"X_0 of {name}", *to_ase(row, row.pos))
        yield Named(f"X_gt of {name}", *to_ase(row, row.pos_relaxed))


def _name(row: AtomicData) -> str:
    return str(row.sid if isinstance(row.sid, str) else row.sid[0])
