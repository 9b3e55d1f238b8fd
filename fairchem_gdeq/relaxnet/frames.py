"""Labelled frames put together to trajectories: n equidistant ones of each relaxation (RelaxNet, 5.3)."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.geometry import find_mic
from fairchem.core.common.registry import registry
from numpy.typing import NDArray

from fairchem_gdeq.data.database import DatabaseSource
from fairchem_gdeq.data.is2rs import SourceDataset
from fairchem_gdeq.data.rows import TARGET, BadRow, check, check_pair

NAMED = re.compile(r"(?P<trajectory>.+)_(?P<step>\d+)")
PATH = "path"  # where a start keeps its frames


@dataclass(frozen=True)
class Frame:
    """One labelled structure of a trajectory; ``row`` is its place in the database."""

    step: int
    row: int


@dataclass(frozen=True)
class Frames:
    """Frames of one trajectory of n atoms.

    Attributes:
        positions: [n, T, 3], Angstrom, as far from the start as atoms have gone.
        energies: [T], eV.
        forces: [n, T, 3], eV/Angstrom.
    """

    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]


def equidistant(number: int, wanted: int) -> list[int]:
    """Places of ``wanted`` frames of ``number``, the first and the last among them, evenly by place."""
    places: list[int] = np.linspace(0, number - 1, wanted).round().astype(int).tolist()
    return places


class FramesSource:
    """The trajectories of an ASE database, whose rows are frames called ``NAME_STEP``.

    A row of this source is the start of a trajectory, with its last frame as the target and its frames
    under ``PATH`` in ``info``.
    """

    def __init__(self, config: dict[str, Any], frames: int) -> None:
        """
        Args:
            config: as ``DatabaseSource``.
            frames: T.

        Raises:
            ValueError: a row is not called so, or as ``DatabaseSource``.
        """
        self.target_key: str | None = TARGET
        self.frames = frames
        self._rows = DatabaseSource(config, None)
        found: dict[str, list[Frame]] = defaultdict(list)
        for row in range(len(self._rows)):
            sid = str(self._rows.read(row).info["sid"])
            named = NAMED.fullmatch(sid)
            if named is None:
                raise ValueError(
                    f"{self._rows.where(row)}: expected a name (sid) of the form NAME_STEP, such as "
                    f"vacancy_0_12, which says which trajectory a frame is of, found {sid!r}"
                )
            found[named["trajectory"]].append(Frame(int(named["step"]), row))
        self._known = [
            (name, sorted(each, key=lambda frame: frame.step)) for name, each in found.items()
        ]

    def __len__(self) -> int:
        return len(self._known)

    def where(self, index: int) -> str:
        """File and trajectory."""
        name, frames = self._known[index]
        return f"{self._rows.where(frames[0].row)}, trajectory {name}"

    def read(self, index: int) -> Atoms:
        """The start.

        Raises:
            BadRow: there are too few frames, of one trajectory in different atoms or cells, or without
                energy and forces; says which.
        """
        name, known = self._known[index]
        where = self.where(index)
        if len(known) < self.frames:
            raise BadRow(
                where,
                f"{len(known)} frames, expected at least {self.frames} (frames={self.frames})",
            )
        chosen = [known[place] for place in equidistant(len(known), self.frames)]
        images = [self._rows.read(frame.row) for frame in chosen]
        for frame, image in zip(chosen, images, strict=True):
            check(image, f"{where}, step {frame.step}", None)
            check_pair(images[0], image, f"{where}, step {frame.step}")
        start: Atoms = images[0].copy()  # a copy has no calculator
        start.info = {"sid": name}
        labels = [
            labels_of(image, f"{where}, step {frame.step}")
            for frame, image in zip(chosen, images, strict=True)
        ]
        energies, forces = zip(*labels, strict=True)
        positions = [start.positions + _moves(start, image) for image in images]
        start.info[PATH] = Frames(
            np.stack(positions, axis=1), np.array(energies), np.stack(forces, axis=1)
        )
        start.info[TARGET] = positions[-1]
        return start


def labels_of(image: Atoms, where: str) -> tuple[float, NDArray[np.float64]]:
    """Energy (eV) and forces [n, 3] (eV/Angstrom) that a frame carries.

    Raises:
        BadRow: it carries none, or one that is not finite.
    """
    found = {} if image.calc is None else image.calc.results
    missing = [key for key in ("energy", "forces") if found.get(key) is None]
    if missing:
        raise BadRow(where, f"no {' and no '.join(missing)} among its labels")
    energy, forces = float(found["energy"]), np.asarray(found["forces"], dtype=float)
    if not np.isfinite(energy) or not np.isfinite(forces).all():
        raise BadRow(where, "its energy or forces contain NaN or infinity")
    return energy, forces


def _moves(start: Atoms, image: Atoms) -> NDArray[np.float64]:
    """From the start to a later frame [n, 3], Angstrom, by the nearest image."""
    moves: NDArray[np.float64] = find_mic(image.positions - start.positions, start.cell, start.pbc)[
        0
    ]
    return moves


@registry.register_dataset("relaxation_frames")
class FramesDataset(SourceDataset):
    """Starts with T frames of their relaxations, from databases of labelled frames.

    An item has, besides what ``SourceDataset`` gives, ``path_positions`` [n, T, 3] (Angstrom),
    ``path_forces`` [n, T, 3] (eV/Angstrom) and ``path_energies`` [1, T] (eV).

    Config keys besides those of ``SourceDataset``: ``frames``, T; ``connect_args`` and ``select_args`` of
    fairchem's ``ase_db``. With ``skip_bad`` trajectories that cannot be used, such as those of fewer
    frames, are named and left out.
    """

    source: FramesSource

    def _open(self, config: dict[str, Any]) -> FramesSource:
        return FramesSource(config, int(config["frames"]))

    @cached_property
    def _metadata(self) -> dict[str, NDArray[Any]]:
        """Atom counts of the trajectories; what lies beside the files is of their frames."""
        assert self._natoms is not None
        return {"natoms": self._natoms}

    def _with_target(self, atoms: Atoms, sid: object) -> Any:
        data = super()._with_target(atoms, sid)
        path: Frames = atoms.info[PATH]
        for key, values in (
            ("path_positions", path.positions),
            ("path_forces", path.forces),
            ("path_energies", path.energies[None]),
        ):
            data[key] = torch.as_tensor(values, dtype=data.pos.dtype)
        return data
