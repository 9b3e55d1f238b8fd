"""The file of a split that ``fairchem.core.scripts.make_submission_file`` joins for EvalAI."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import ase
import numpy as np

from fairchem_gdeq.training.in_use import whole_file


def write_positions(path: Path, images: list[ase.Atoms]) -> None:
    """Write relaxed structures as fairchem-core 1.10's ``relaxed_positions.npz``, all at once.

    ids: [s] str, ascending, each ``info["sid"]``; pos: [n, 3], Angstrom, all atoms (fixed ones too)
    of the structures in that order; chunk_idx: [s - 1] int, where ``np.split`` cuts pos.

    The leaderboard knows structures by their names alone. Where some have the same, no file is
    written, an earlier one is removed, and the log names them.

    Raises:
        ValueError: no structures.
    """
    if not images:
        raise ValueError(f"{path}: no structures to write")
    named = {str(atoms.info["sid"]): atoms for atoms in images}
    if len(named) < len(images):
        times = Counter(str(atoms.info["sid"]) for atoms in images)
        shared = [sid for sid, number in times.items() if number > 1]
        path.unlink(missing_ok=True)
        logging.warning(
            f"{path} is not written: the leaderboard tells structures apart by their names (sid), "
            f"and {len(shared)} names stand for several: {', '.join(shared[:5])}. Give every row of "
            "the data set a name of its own"
        )
        return
    ids = sorted(named)
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(
            file,
            ids=np.array(ids),
            pos=np.concatenate([named[sid].positions for sid in ids]),
            chunk_idx=np.cumsum([len(named[sid]) for sid in ids])[:-1],
        )
