"""Labelled frames held out: the force error of the base and of what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from fairchem.core.datasets.base_dataset import Subset
from torch import nn
from torch_geometric.data import Batch, Data

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.force_frames import collated, compared_with, open_frames
from fairchem_gdeq.training.force_errors import Compared, force_scores
from fairchem_gdeq.training.ranks import rank, ranks


@dataclass(frozen=True)
class HeldFrames:
    """What force errors are measured on.

    Attributes:
        src: folder (or folders) of frames with forces.
        form: theirs, as ``ForceReplay.format``.
    """

    src: str | Sequence[str]
    form: str = "ase_db"

    def open(self) -> Subset:
        """The frames.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: some have no forces, or no finite ones; says which.
        """
        return open_frames(self.src, self.form, "val")


def force_errors(
    frames: Subset,
    models: Mapping[str, nn.Module],
    field_of: Callable[[nn.Module, Batch], OCPForceField],
    budget: int,
    device: torch.device,
) -> dict[str, Scores]:
    """The mean absolute error ``force_mae`` (eV/Angstrom, free atoms) of each model by its name.

    Args:
        frames: labelled ones.
        models: by their names in the table.
        field_of, device: as ``compared_with``.
        budget: atoms evaluated together; a larger frame is evaluated alone.
    """

    def batches_of(model: nn.Module) -> Iterator[Compared]:
        return compared_with(model, field_of, map(collated, packs(frames, budget)), device)

    return force_scores(models, batches_of)


def packs(frames: Subset, budget: int) -> Iterator[list[Data]]:
    """This rank's frames, as many at a time as have no more atoms than the budget, but at least one."""
    pack, atoms = list[Data](), 0
    for index in range(rank(), len(frames), ranks()):
        frame = frames[index]
        if pack and atoms + int(frame.natoms) > budget:
            yield pack
            pack, atoms = [], 0
        pack.append(frame)
        atoms += int(frame.natoms)
    if pack:
        yield pack
