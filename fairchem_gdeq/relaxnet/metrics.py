"""RelaxNet's own columns: how wrong energies and forces of held trajectories are (its Table 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from fairchem_gdeq.evaluation.metric import Column, Metric, Scores


def _of_frames(name: str, unit: str, heading: str, form: str) -> Metric:
    """Of labelled frames, not of relaxed structures: who scores a model adds it to the row."""
    return Metric(name, unit, lambda columns, basin: None, Column(heading, form), "relaxation")


ENERGY_LAST = _of_frames("energy_mae_last", "eV", "E last\n(eV)", "{:.3f}")
ENERGY_ALL = _of_frames("energy_mae_all", "eV", "E all\n(eV)", "{:.3f}")
FORCES_LAST = _of_frames("force_mae_last", "eV/A", "F last\n(eV/A)", "{:.4f}")
FORCES_ALL = _of_frames("force_mae_all", "eV/A", "F all\n(eV/A)", "{:.4f}")
PATHS = tuple(
    f"{__name__}.{name}" for name in ("ENERGY_LAST", "ENERGY_ALL", "FORCES_LAST", "FORCES_ALL")
)


class FrameErrors(NamedTuple):
    """Sums over some trajectories.

    Attributes:
        energy, energy_last: of |E - E^| over frames and structures, and over last frames, eV.
        force, force_last: of |F - F^| of free atoms' coordinates, eV/Angstrom.
        frames: of all trajectories together; structures: number of those.
        coordinates: free ones of one frame, of all structures.
    """

    energy: float
    energy_last: float
    force: float
    force_last: float
    frames: int
    structures: int
    coordinates: int

    @classmethod
    def of(
        cls,
        energies: Tensor,
        true_energies: Tensor,
        forces: Tensor,
        true_forces: Tensor,
        free: Tensor,
    ) -> FrameErrors:
        """Of energies [T, s] and forces [T, n, 3] beside the true ones; free [n] bool."""
        wrong = (energies - true_energies).abs().double()
        turned = (forces - true_forces).abs().double()[:, free]
        return cls(
            float(wrong.sum()),
            float(wrong[-1].sum()),
            float(turned.sum()),
            float(turned[-1].sum()),
            wrong.numel(),
            wrong.shape[1],
            3 * int(free.sum()),
        )

    @classmethod
    def total(cls, parts: Iterable[FrameErrors]) -> FrameErrors:
        """Of all parts together."""
        return cls(*(sum(column) for column in zip(*parts, strict=True)))

    @property
    def scores(self) -> Scores:
        """The four means."""
        images = self.frames / self.structures
        return {
            ENERGY_LAST.name: self.energy_last / self.structures,
            ENERGY_ALL.name: self.energy / self.frames,
            FORCES_LAST.name: self.force_last / max(self.coordinates, 1),
            FORCES_ALL.name: self.force / max(self.coordinates * images, 1),
        }
