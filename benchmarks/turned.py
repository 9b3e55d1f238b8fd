"""Silicon data for a model that reads absolute coordinates: ``python -m benchmarks.turned``.

ADAPT cannot know that a turned defect is the same defect. Its base was trained on every frame in all
24 orientations that leave the host crystal as it is (``data.symmetry``). This writes every pair of a
start and its target in one of them (``runs/turned/train``), and every frame in some, drawn at random
(``train_frames``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.subsets import DATA, PARTS, rows_of, write
from fairchem_gdeq.data.symmetry import tetrahedral_group, turn

SITE = np.full(3, 6.145875)  # Angstrom: of configs/si/pretrain_adapt.yml


def turned(
    source: list[Path], count: int, random: np.random.Generator
) -> Iterator[tuple[Atoms, dict[str, Any]]]:
    """Each row in ``count`` orientations, with its data."""
    group = tetrahedral_group()
    for row in (row for each in source for row in rows_of(each)):
        for number in random.choice(len(group), count, replace=False):
            data = dict(row.data)
            if "pos_relaxed" in data:
                data["pos_relaxed"] = _turned(data["pos_relaxed"], group[number])
            data["sid"] = f"{data['sid']}_turned{number}"
            yield turn(row.toatoms(), group[number], SITE), data


def _turned(positions: NDArray[np.float64], operation: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = (np.asarray(positions) - SITE) @ operation.T + SITE
    return moved


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
        number = write(turned(source, count, random), arguments.out / name)
        print(f"{number} structures: {arguments.out / name}")


if __name__ == "__main__":
    main()
