"""Trajectories held out: the errors of energies and forces along them, from their starts alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import Task

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.metric import Scores
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

    def open(self, task: Task) -> FramesDataset | None:
        """The trajectories; None where there are none.

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

    @torch.no_grad()
    def scores(
        self, task: Task, models: Mapping[str, torch.nn.Module], device: torch.device
    ) -> dict[str, Scores]:
        """``metrics.FrameErrors`` of each model by its name; of a trajectory that is lost, none.

        Raises:
            FileNotFoundError, BadRows, ValueError: as ``open``.
        """
        held = self.open(task)
        if held is None:
            return {}
        found: dict[str, Scores] = {}
        for name, module in models.items():
            model = hydra_model(module).to(device).eval()
            parts: list[FrameErrors] = []
            lost = 0
            own = (held[i] for i in range(rank(), len(held), ranks()))
            for rows in packed(own, self.max_atoms):
                batch = collate(rows).to(device)
                path, free = self.is2rs.evolve(model, batch), batch.fixed == 0
                true, bad = reference_of(batch), self.is2rs.lost(batch, path)
                lost += int(bad.sum())
                kept = ~bad
                atoms = free & kept[batch.batch]
                errors = FrameErrors.of(
                    path.energies[:, kept],
                    true.energies[:, kept],
                    path.forces,
                    true.forces,
                    atoms,
                )
                parts.append(errors)
            every: list[FrameErrors] = gather(parts)
            if lost:
                logging.warning(f"{name}: {lost} held trajectories are lost and have no errors")
            total = every[0]
            for each in every[1:]:
                total = total + each
            if total.structures:
                found[name] = total.scores
        return found
