"""Frames for force training, as an ASE database."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect


def write_frames(
    folder: Path, structures: list[Atoms], seed: int = 2, spoil: int | None = None
) -> None:
    """Frames with random forces for force training; one of number ``spoil`` is not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for i, atoms in enumerate(structures):
            frame, forces = atoms.copy(), rng.normal(size=atoms.positions.shape)
            if i == spoil:
                forces[0, 0] = np.nan
            frame.calc = SinglePointCalculator(frame, energy=0.0, forces=forces)
            database.write(frame, data={"sid": f"frame{i}"})
    np.savez(folder / "metadata.npz", natoms=np.array([len(a) for a in structures]))
