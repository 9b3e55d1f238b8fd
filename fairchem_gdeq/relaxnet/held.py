"""Trajectories held out: the errors of energies and forces along them, from their starts alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import nn

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.scoring import BASE
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.relaxnet.frames import FramesDataset
from fairchem_gdeq.relaxnet.loss import Reference
from fairchem_gdeq.relaxnet.metrics import FrameErrors
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS
from fairchem_gdeq.training.ranks import gather, rank, ranks


def reference_of(batch: AtomicData) -> Reference:
    """The frames that a batch of ``FramesDataset`` carries."""
    return Reference(
        batch.path_positions.transpose(0, 1),
        batch.path_energies.transpose(0, 1),
        batch.path_forces.transpose(0, 1),
    )


def packed(rows: Iterable[AtomicData], budget: int) -> Iterator[list[AtomicData]]:
    """Rows in groups of at most ``budget`` atoms; a larger one is alone."""
    group: list[AtomicData] = []
    atoms = 0
    for row in rows:
        number = int(row.natoms.sum())
        if group and atoms + number > budget:
            yield group
            group, atoms = [], 0
        group.append(row)
        atoms += number
    if group:
        yield group


@dataclass(frozen=True)
class HeldTrajectories:
    """What the errors are measured on.

    Attributes:
        frames_of: folder (or folders) of labelled frames; None: there are none.
        is2rs: evolves, with its own number of frames.
        max_atoms: evolved together.
    """

    frames_of: str | Sequence[str] | None
    is2rs: RelaxNetIS2RS
    max_atoms: int

    @cached_property
    def trajectories(self) -> FramesDataset | None:
        """Those; None where there are none.

        Raises:
            FileNotFoundError, BadRows, ValueError: as ``FramesDataset``.
        """
        if self.frames_of is None:
            return None
        many = not isinstance(self.frames_of, str)
        config = {
            "src": list(self.frames_of) if many else self.frames_of,
            "frames": self.is2rs.how.frames,
            "skip_bad": True,
        }
        return FramesDataset(config)

    def scores(
        self, task: Task, models: Mapping[str, nn.Module], device: torch.device
    ) -> dict[str, Scores]:
        """``metrics.FrameErrors`` of each model by its name.

        The untrained model has none: without the elements' energies its errors are those of hundreds
        of eV.
        """
        found = {
            name: hydra_model(model).to(device).eval()
            for name, model in models.items()
            if self.trajectories is not None and name != BASE
        }
        return {
            name: errors.scores for name, m in found.items() if (errors := self._errors(name, m))
        }

    @torch.no_grad()
    def _errors(self, name: str, model: HydraModel) -> FrameErrors | None:
        """Over all ranks; None where every trajectory is lost, and without those that are."""
        held = self.trajectories
        assert held is not None
        device = next(model.parameters()).device
        parts: list[FrameErrors] = []
        lost = 0
        own = (held[i] for i in range(rank(), len(held), ranks()))
        for rows in packed(own, self.max_atoms):
            batch = collate(rows).to(device)
            path, true = self.is2rs.evolve(model, batch), reference_of(batch)
            kept = ~self.is2rs.lost(batch, path)
            lost += int((~kept).sum())
            atoms = (batch.fixed == 0) & kept[batch.batch]
            energies = path.energies[:, kept], true.energies[:, kept]
            parts.append(FrameErrors.of(*energies, path.forces, true.forces, atoms))
        if lost:
            logging.warning(f"{name}: {lost} held trajectories are lost and have no errors")
        total = FrameErrors.total(gather(parts))
        return total if total.structures else None
