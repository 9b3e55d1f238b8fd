"""The rows of the results table: what each does with a batch, and reference forces beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from ase.calculators.calculator import Calculator
from torch import Tensor

from fairchem_gdeq.evaluation.ase_baselines import OPTIMIZERS, relax_with_ase
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.reference import AskedReference, ReferenceFile
from fairchem_gdeq.evaluation.task import Batch, RelaxationTask, labels_of, to_ase
from fairchem_gdeq.relax import ForceField

# What a row does with a batch, given the base on it, unfrozen.
Score = Callable[[ForceField, Batch], tuple[list[Record], Tensor]]
Reference = Calculator | ReferenceFile


def open_reference(reference: Calculator | str | Path | None) -> Reference | None:
    """The reference that a config names: a calculator, a file, or none.

    Raises:
        FileNotFoundError, ValueError: as ``ReferenceFile``.
        TypeError: something else.
    """
    if isinstance(reference, str | Path):
        return ReferenceFile(reference)
    if reference is None or isinstance(reference, Calculator):
        return reference
    raise TypeError(f"reference: expected an ASE calculator or a file, got {type(reference)}")


def baseline_rows(names: Sequence[str], is2rs: RelaxationTask) -> dict[str, Score]:
    """Rows of ASE's optimizers (on the base), each with a title.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(names) - set(OPTIMIZERS)
    if unknown:
        raise ValueError(
            f"unknown baselines {', '.join(sorted(unknown))}: choose among {', '.join(OPTIMIZERS)}"
        )
    return {
        f"ASE {OPTIMIZERS[name].__name__}": partial(relax_with_ase, name, is2rs) for name in names
    }


def unrelaxed_row(is2rs: RelaxationTask) -> Score:
    """What doing nothing scores."""

    def score(field: ForceField, batch: Batch) -> tuple[list[Record], Tensor]:
        return is2rs.score_with(field, batch, batch.pos), batch.pos

    return score


def file_row(is2rs: RelaxationTask, file: ReferenceFile) -> tuple[str, Score]:
    """Title and row of the structures in a file, scored with the forces that it holds.

    They are scored as they are and not matched with the relaxations of the other rows, which end a
    little elsewhere on another machine; forces change a good deal over that.
    """

    def score(field: ForceField, batch: Batch) -> tuple[list[Record], Tensor]:
        structures = is2rs.structures(batch)
        sizes = torch.bincount(structures.batch, minlength=structures.count).tolist()
        free = structures.free.cpu().split(sizes)
        frames = [
            file.frame(label, numbers.tolist())
            for label, numbers in zip(
                labels_of(batch), batch.atomic_numbers.split(sizes), strict=True
            )
        ]
        stored = torch.cat([torch.as_tensor(atoms.positions) for atoms in frames]).to(batch.pos)
        # Many programs wrap atoms into the cell; fairchem's MAE would count that as an error.
        positions = batch.pos + structures.minimum_image(stored - batch.pos)
        forces = [
            file.force(atoms, mask.tolist()) for atoms, mask in zip(frames, free, strict=True)
        ]
        records = [
            replace(record, reference_force=force)
            for record, force in zip(is2rs.score_with(field, batch, positions), forces, strict=True)
        ]
        return records, positions

    return f"file {file.path.name}", score


def with_reference(score: Score, reference: AskedReference) -> Score:
    """The row with a reference's forces and energies at its structures."""

    def scored(field: ForceField, batch: Batch) -> tuple[list[Record], Tensor]:
        records, positions = score(field, batch)
        images, targets = (to_ase(batch, where) for where in (positions, batch.pos_relaxed))
        return reference.judge(records, images, targets), positions

    return scored
