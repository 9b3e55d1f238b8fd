"""Frames of fairchem 1 beside the base and the structures of the run that is to train on them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.evaluating import SECTIONS, EvaluatingTrainer
from fairchem_gdeq.fairchem1.force_frames import Rows, compared_with
from fairchem_gdeq.fairchem1.replay import BaseBatches, FrameBatches
from fairchem_gdeq.fairchem1.supported import element_limit
from fairchem_gdeq.training.frame_checks import SAMPLE
from fairchem_gdeq.training.run_frames import check_frames, elements_of, structures_of


def check_forces(trainer: EvaluatingTrainer, batches: FrameBatches | BaseBatches | None) -> None:
    """Refuse frames that a run should not train on, and held-out frames without forces.

    Args:
        trainer: of the run; its base and its data sets are compared with the frames.
        batches: what is trained on beside the signal.

    Raises:
        ValueError: as ``check_frames`` and ``HeldFrames.open``.
        FileNotFoundError: as ``HeldFrames.open``.
    """
    loaders = {name: getattr(trainer, f"{name}_loader", None) for name in SECTIONS}
    held: dict[str, Any] = {
        f"split {name}": loader.dataset for name, loader in loaders.items() if loader is not None
    }
    trained = held.pop("split train")
    if (frames := trainer.settings.forces.held) is not None:
        held["task.forces.val"] = frames.open()
    if not isinstance(batches, FrameBatches):
        return
    base = trainer.base.model
    check_frames(
        Rows(batches.frames),
        batches.source,
        element_limit(base),
        compared_with(base, trainer.field_of, sampled(batches), trainer.device),
        elements_of(Rows(trained)),
        chain.from_iterable(structures_of(name, Rows(rows)) for name, rows in held.items()),
    )


def sampled(batches: FrameBatches) -> Iterator[Batch]:
    """``SAMPLE`` frames in an order that mixes them and is always the same, in batches."""
    order = np.random.default_rng(0).permutation(len(batches.frames))[:SAMPLE]
    for start in range(0, len(order), batches.size):
        yield batches.of(order[start : start + batches.size])
