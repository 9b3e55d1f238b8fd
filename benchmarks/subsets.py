"""Silicon data of the first N relaxations: ``python -m benchmarks.subsets 125 250 500 884``.

Writes ``runs/subsets/N/train`` (starts and targets) and ``train_frames`` (frames of the same relaxations)
for learning curves. Relaxations whose frames are not in the repository are passed over. Those of the
second round come first: any beginning of it covers kinds of defects and elements evenly.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.db.row import AtomsRow

DATA = Path(__file__).parents[1] / "data" / "si"
PARTS = ("train_more", "train")


def rows_of(folder: Path) -> Iterator[AtomsRow]:
    """Rows of an ASE-LMDB in their order."""
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        yield from database.select()


def relaxation_of(sid: str) -> str:
    """The relaxation that a frame is of."""
    return sid.rpartition("_")[0]


def write(structures: Iterable[tuple[Atoms | AtomsRow, Mapping[str, Any]]], folder: Path) -> int:
    """Write structures with their data as a data set of fairchem; how many they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    sizes = []
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for structure, data in structures:
            database.write(structure, data=data)
            sizes.append(len(structure.numbers))
    np.savez(folder / "metadata.npz", natoms=np.array(sizes))
    return len(sizes)


def copy(
    rows: list[AtomsRow], folder: Path, data: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Write rows as a data set of fairchem, with their own data or other."""
    write(zip(rows, data or [row.data for row in rows], strict=True), folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", type=int, nargs="+", help="numbers of relaxations")
    parser.add_argument("--out", type=Path, default=Path("runs/subsets"))
    arguments = parser.parse_args()
    frames = [row for part in PARTS for row in rows_of(DATA / f"{part}_frames")]
    framed = {relaxation_of(row.data["sid"]) for row in frames}
    pairs = [r for part in PARTS for r in rows_of(DATA / part) if r.data["sid"] in framed]
    if max(arguments.sizes) > len(pairs):
        parser.error(f"there are {len(pairs)} relaxations with frames")
    for size in arguments.sizes:
        chosen = pairs[:size]
        names = {row.data["sid"] for row in chosen}
        kept = [row for row in frames if relaxation_of(row.data["sid"]) in names]
        copy(chosen, arguments.out / str(size) / "train")
        copy(kept, arguments.out / str(size) / "train_frames")
        print(f"{size} relaxations, {len(kept)} frames: {arguments.out / str(size)}")


if __name__ == "__main__":
    main()
