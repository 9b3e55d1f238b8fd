"""The file of a split that ``fairchem.core.scripts.make_submission_file`` joins for EvalAI."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import ase
import numpy as np


def write_positions(target: Path | BinaryIO, images: list[ase.Atoms]) -> None:
    """Write relaxed structures as fairchem-core 1.10's ``relaxed_positions.npz``.

    ids: [s] str, ascending, each ``info["sid"]`` once; pos: [n, 3], Angstrom, all atoms (fixed ones
    too) of the structures in that order; chunk_idx: [s - 1] int, where ``np.split`` cuts pos.
    Of structures with the same sid, as a distributed sampler's padding makes them, the last counts.

    Raises:
        ValueError: no structures.
    """
    if not images:
        raise ValueError(f"{target}: no structures to write")
    unique = {str(atoms.info["sid"]): atoms for atoms in images}
    ids = sorted(unique)
    np.savez_compressed(
        target,
        ids=np.array(ids),
        pos=np.concatenate([unique[sid].positions for sid in ids]),
        chunk_idx=np.cumsum([len(unique[sid]) for sid in ids])[:-1],
    )
