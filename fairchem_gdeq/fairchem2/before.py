"""What is refused before a run computes anything: else it would be found after the training, or never."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from fairchem.core.models.base import HydraModel

from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.evaluation.reference import ReferenceFile
from fairchem_gdeq.evaluation.rows import Reference
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.frame_checks import check_frames
from fairchem_gdeq.fairchem2.held_frames import HeldFrames
from fairchem_gdeq.fairchem2.replay import FrameBatches
from fairchem_gdeq.fairchem2.supported import element_limit
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.training.frame_checks import looked_at, unknown_element
from fairchem_gdeq.training.run_frames import Rows, elements_of, name_of, structures_of


def check_all_frames(
    unit: GDEQTrainer, base: HydraModel, splits: Mapping[str, Any], held_frames: HeldFrames | None
) -> None:
    """Refuse frames that the run should not train on, and held-out frames without forces.

    Args:
        unit: opens the frames that it trains on.
        base: the untrained model.
        splits: data sets by their names, that of ``train`` among them.
        held_frames: those of ``forces.val``.

    Raises:
        ValueError: as ``check_frames``, ``ForceReplay.open`` and ``require_known_elements``.
    """
    held: dict[str, Any] = {f"split {name}": rows for name, rows in splits.items()}
    trained = held.pop("split train")
    if held_frames is not None and (frames := held_frames.open(unit.force_task)):
        require_known_elements(base, f"frames {frames.source}", frames.frames)
        held["forces.val"] = frames.frames
    unit.open_forces()
    if isinstance(unit.replayed, FrameBatches):
        structures = chain.from_iterable(structures_of(*each) for each in held.items())
        check_frames(unit.replayed, base, elements_of(trained), structures)


def require_known_elements(base: HydraModel, source: str, rows: Rows) -> None:
    """Refuse structures with an element that a model does not know.

    Args:
        base: the model.
        source: what a message calls the rows.
        rows: a data set.

    Raises:
        ValueError: names the first.
    """
    limit = element_limit(hydra_model(base))
    if limit is None:
        return
    for index in looked_at(len(rows)):
        row = rows[index]
        if text := unknown_element(row.atomic_numbers.tolist(), limit):
            place = f" (row {int(row.row)})" if "row" in row else ""
            raise ValueError(f"{source}: {name_of(row)}{place} {text}")


def require_reference(reference: Reference | None, rows: Rows) -> None:
    """Refuse a file of reference forces that lacks a structure of the split it is for.

    Raises:
        ValueError: as ``ReferenceFile.frame`` and ``require_own_frames``.
    """
    if not isinstance(reference, ReferenceFile):
        return
    labels = []
    for index in range(len(rows)):
        row = rows[index]
        labels.append(Label(name_of(row), int(row.row)))
        reference.frame(labels[-1], row.atomic_numbers.tolist())
    reference.require_own_frames(labels)


def structures_in(mode: str, split: str, names: Iterable[str]) -> list[str]:
    """The splits whose structures a mode relaxes."""
    if mode == "train":
        return list(names)
    return ["train"] if mode == "diagnose" else [split]
