"""What the generators share: ASE-LMDBs, a choice of frames, statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db import connect


def evenly_in_force(trajectory: list[Atoms], count: int) -> list[int]:
    """At most ``count`` indices, first and last included, evenly spread in log max force."""
    force = np.array([np.linalg.norm(a.get_forces(), axis=1).max() for a in trajectory])
    if len(trajectory) <= count:
        return list(range(len(trajectory)))
    travelled = np.concatenate([[0.0], np.abs(np.diff(np.log(force))).cumsum()])
    wanted = np.linspace(0.0, travelled[-1], count)
    nearest = {int(np.abs(travelled - w).argmin()) for w in wanted}
    return sorted(nearest | {0, len(trajectory) - 1})


def write(folder: Path, rows: list[tuple[Atoms, dict[str, object]]]) -> None:
    """One ASE-LMDB and fairchem's ``metadata.npz`` (atom counts, for its batch sampler)."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for atoms, data in rows:
            database.write(atoms, data=data)
    (folder / "data.aselmdb-lock").unlink(missing_ok=True)
    np.savez(folder / "metadata.npz", natoms=np.array([len(atoms) for atoms, _ in rows]))


def summary(values: list[float]) -> dict[str, float]:
    """Minimum, median, mean and maximum."""
    return {f.__name__: round(float(f(values)), 3) for f in (np.min, np.median, np.mean, np.max)}
