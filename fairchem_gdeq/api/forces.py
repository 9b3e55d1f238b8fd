"""Forces that ``finetune`` trains on beside the signal: labelled structures, or the base's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import as_list
from fairchem_gdeq.data.frames import for_fairchem
from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.fairchem2.fields import force_task
from fairchem_gdeq.fairchem2.frame_checks import check_frames
from fairchem_gdeq.fairchem2.replay import BaseBatches, ForceReplay, FrameBatches, forces_loss
from fairchem_gdeq.training.replay import BASE, Replay

GIVEN = "given to finetune"  # what messages call the frames


@dataclass(frozen=True)
class Forces:
    """Forces that are trained on in the same step as the signal, and how much.

    They are what the section ``forces`` of a config is.

    Attributes:
        frames: structures with the forces of a calculation, as ASE reads them from its output, in
            eV/Angstrom; or ``base``: the untrained potential's own, on the way of the relaxations.
        weight: of their loss, which is fairchem's.
        limit: longest gradient of the signal, in lengths of that of the forces.
        updates: optimizer steps on frames alone before each step of the signal.
        alone: share of the run, at its beginning, whose steps are of forces alone.
        max_atoms: atoms of a batch of frames; None is that of a training batch.
    """

    frames: Sequence[Atoms] | Literal["base"]
    weight: float = 10.0
    limit: float = 1.0
    updates: int = 0
    alone: float = 0.0
    max_atoms: int | None = None

    def open(self, base: Potential, max_atoms: int, seed: int) -> OpenForces:
        """Batches for a potential.

        Args:
            base: the untrained potential.
            max_atoms: of a training batch.
            seed: of the order of frames.

        Raises:
            ValueError: settings that cannot be meant, or frames without forces; says which.
            TypeError: a frame is not an ``Atoms``.
        """
        word = self.frames if isinstance(self.frames, str) else None
        settings = ForceReplay(
            word or GIVEN,
            base.dataset,
            self.max_atoms or max_atoms,
            seed=seed,
            lambda_forces=self.weight,
            limit=self.limit,
            updates=self.updates,
            alone=self.alone,
        )
        if word is not None and not settings.of_base:
            raise ValueError(
                f"forces={self.frames!r}: expected labelled structures, or {BASE!r} for the base's own"
            )
        frames = None
        if not isinstance(self.frames, str):
            frames = ListedFrames(as_list(self.frames), base)
        return OpenForces(settings, settings.open(force_task(base.tasks), base.model, frames))


@dataclass(frozen=True)
class OpenForces:
    """``Forces`` whose batches are there."""

    settings: ForceReplay
    batches: FrameBatches | BaseBatches

    def check(self, base: Potential, starts: Iterable[Atoms], held: Iterable[Named]) -> None:
        """Refuse frames that cannot be meant, see ``check_frames``.

        Args:
            base: the untrained potential.
            starts: structures that are trained on.
            held: structures that are held out.
        """
        if isinstance(self.batches, FrameBatches):
            elements = {int(number) for atoms in starts for number in atoms.numbers}
            check_frames(self.batches, base.model, elements, held)

    def replay(self, tuned: Potential) -> Replay:
        """What a step of the run takes of it, for the potential that is trained."""

        def loss(frames: AtomicData) -> Tensor:
            return forces_loss(tuned.model, self.batches.task, frames.to(tuned.device))

        return Replay(self.settings, self.batches, loss)


class ListedFrames:
    """Structures with forces as fairchem's data set of files gives them."""

    def __init__(self, frames: list[Atoms], potential: Potential) -> None:
        """
        Raises:
            ValueError: there are none.
        """
        if not frames:
            raise ValueError("forces: no frames")
        self.frames, self.potential = frames, potential

    def __len__(self) -> int:
        return len(self.frames)

    def get_metadata(self, key: str, indices: list[int]) -> list[int]:
        """Numbers of atoms, for the sampler."""
        return [len(self.frames[i]) for i in indices]

    def __getitem__(self, index: int) -> AtomicData:
        atoms, dtype = self.frames[index], self.potential.dtype
        plain = for_fairchem(atoms.copy())
        forces = _labels(atoms)
        if forces is not None:
            plain.calc = SinglePointCalculator(plain, forces=forces)
        data = AtomicData.from_ase(
            plain,
            sid=str(atoms.info.get("sid", f"frame {index}")),
            target_dtype=dtype,
            r_data_keys=["charge", "spin"],
        )
        data.dataset = self.potential.dataset
        data.dataset_name = self.potential.dataset
        data.fixed = data.fixed.long()
        return data


def _labels(atoms: Atoms) -> np.ndarray | None:
    """The forces [n, 3] that a calculation has left, on fixed atoms too; None if they are not of these
    positions.
    """
    calculator = atoms.calc
    if calculator is None or calculator.calculation_required(atoms, ["forces"]):
        return None
    return np.asarray(calculator.results["forces"])
