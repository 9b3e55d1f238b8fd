"""Labelled frames held out: the force error of the base and of what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from fairchem.core.units.mlip_unit.mlip_unit import Task

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.replay import ForceReplay, FrameBatches, compared_with
from fairchem_gdeq.training.force_errors import Compared, force_scores
from fairchem_gdeq.training.ranks import rank, ranks


@dataclass(frozen=True)
class HeldFrames:
    """What force errors are measured on.

    Attributes:
        src: folder (or folders) of frames with forces, as ``ForceReplay`` has them; None: there are none.
        dataset: the name by which the model knows its data.
        max_atoms: evaluated together.
    """

    src: str | Sequence[str] | None
    dataset: str
    max_atoms: int

    def open(self, task: Task) -> FrameBatches | None:
        """The frames, for a model's force task; None where there are none.

        Raises:
            ValueError: as ``ForceReplay.open``.
        """
        if self.src is None:
            return None
        settings = ForceReplay(self.src, self.dataset, self.max_atoms)
        return FrameBatches(settings, task, shared=False)

    def scores(
        self, task: Task, models: Mapping[str, torch.nn.Module], device: torch.device
    ) -> dict[str, Scores]:
        """The mean absolute error ``force_mae`` (eV/Angstrom, free atoms) of each model by its name.

        Raises:
            ValueError: as ``open``.
        """
        batches = self.open(task)
        if batches is None:
            return {}
        own = [batch for batch in batches.sampler.all_batches if batch][rank() :: ranks()]

        def batches_of(model: torch.nn.Module) -> Iterator[Compared]:
            return compared_with(hydra_model(model).to(device).eval(), batches, own, device)

        return force_scores(models, batches_of)
