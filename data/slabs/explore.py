"""Label with SevenNet-0 what a base potential meets in its own relaxations.

    python data/slabs/explore.py BASE.pt --workers 2              # resumable
    python data/slabs/explore.py BETTER_BASE.pt --round 2         # other starts
    python data/slabs/generate.py pack --splits train             # puts them into train_frames

The starts are new orientations of the training systems; the rest is ``python -m fairchem_gdeq.explore``.
A base that is trained on another potential's relaxations alone is right where those went. Its own go
elsewhere, and there it must be told.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ase import Atoms
from plan import splits
from systems import System, build

from fairchem_gdeq import explore

HERE = Path(__file__).parent
SEVENNET = explore.Reference("sevenn.calculator.SevenNetCalculator", ("model=7net-0", "device=cpu"))
TURNS = {"train": 3, "other_metals": 2}  # new starts of each system in a round


def starts(which: int) -> list[System]:
    """The training systems and the other metals again, oriented otherwise in each round (from 1)."""
    systems = splits()
    return [
        replace(system, turn=turn)
        for split, turns in TURNS.items()
        for system in systems[split]
        for turn in range((which - 1) * turns + 1, which * turns + 1)
    ]


def built(systems: list[System]) -> Iterator[Atoms]:
    """Their starts, named."""
    for system in systems:
        atoms = build(system)
        atoms.info["sid"] = system.name
        yield atoms


def run(
    base: str,
    systems: list[System],
    folder: Path,
    workers: int = 1,
    reference: explore.Reference = SEVENNET,
) -> explore.Summary:
    """Six frames of each relaxation by the base, labelled, with no force of 20 eV/Angstrom or more."""
    settings = explore.Settings(base, frames=6, tolerance=0.0, device="cpu")
    into = explore.Folder(folder)
    chosen = explore.named(built(systems))
    explore.walk(chosen, settings, into, workers)
    calls = explore.label([start.name for start in chosen], reference, into, workers)
    summary = explore.pack(into, 20.0)
    summary.show(calls, 20.0)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", help="an inference checkpoint of fairchem 2")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--work", type=Path, default=HERE / "work/explored")
    given = parser.parse_args()
    run(given.base, starts(given.round), given.work / f"round{given.round}", given.workers)


if __name__ == "__main__":
    main()
