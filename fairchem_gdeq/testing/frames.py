"""Frames for force training, as an ASE database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from numpy.typing import NDArray


def write_frames(
    folder: Path,
    structures: Sequence[Atoms],
    seed: int = 2,
    spoil: int | None = None,
    labels: Sequence[NDArray[np.float64]] | None = None,
) -> None:
    """Frames with forces [n, 3] each, random ones where none are given, called frame0, frame1, ...

    One of number ``spoil`` is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for i, atoms in enumerate(structures):
            frame, forces = atoms.copy(), rng.normal(size=atoms.positions.shape)
            if labels is not None:
                forces = np.array(labels[i], dtype=float)
            if i == spoil:
                forces[0, 0] = np.nan
            frame.calc = SinglePointCalculator(frame, energy=0.0, forces=forces)
            database.write(frame, data={"sid": f"frame{i}"})
    np.savez(folder / "metadata.npz", natoms=np.array([len(a) for a in structures]))
