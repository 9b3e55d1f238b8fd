"""Silicon data for a model that reads absolute coordinates: ``python -m benchmarks.turned``.

ADAPT cannot know that a turned defect is the same defect. Its base was trained on every frame in all
24 orientations that leave the host crystal as it is (``data.symmetry``). This writes every pair of a
start and its target in one of them (``runs/turned/train``), and every frame in some, drawn at random
(``train_frames``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.db import connect
from numpy.typing import NDArray

from benchmarks.subsets import DATA, PARTS, rows_of
from fairchem_gdeq.data.symmetry import tetrahedral_group, turn

SITE = np.full(3, 6.145875)  # Angstrom: of configs/si/pretrain_adapt.yml


def write_turned(source: list[Path], folder: Path, count: int, random: np.random.Generator) -> int:
    """Write each row in ``count`` orientations; how many that are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    group, sizes = tetrahedral_group(), []
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for row in (row for each in source for row in rows_of(each)):
            for number in random.choice(len(group), count, replace=False):
                data = dict(row.data)
                if "pos_relaxed" in data:
                    data["pos_relaxed"] = _turned(data["pos_relaxed"], group[number])
                data["sid"] = f"{data['sid']}_turned{number}"
                database.write(turn(row.toatoms(), group[number], SITE), data=data)
                sizes.append(row.natoms)
    np.savez(folder / "metadata.npz", natoms=np.array(sizes))
    return len(sizes)


def _turned(positions: NDArray[np.float64], operation: NDArray[np.float64]) -> NDArray[np.float64]:
    turned: NDArray[np.float64] = (np.asarray(positions) - SITE) @ operation.T + SITE
    return turned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=4, help="orientations of each frame")
    parser.add_argument("--out", type=Path, default=Path("runs/turned"))
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    for name, source, count in (
        ("train", [DATA / part for part in PARTS], 1),
        ("train_frames", [DATA / "train_frames"], arguments.frames),
    ):
        number = write_turned(source, arguments.out / name, count, random)
        print(f"{number} structures: {arguments.out / name}")


if __name__ == "__main__":
    main()
