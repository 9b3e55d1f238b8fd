"""Structures whose targets are the ends of a potential's own relaxations: it is right on all of them.

    python -m benchmarks.own_targets runs/own_targets/train
    fairchem -c configs/si/gdeq.yml --mode diagnose paths.train=runs/own_targets/train

For a check of ``--mode diagnose``: it has to say that tuning has little to gain.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import fairchem_gdeq as gdeq
from benchmarks.subsets import copy, rows_of

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen_all_frames.pt"))
    parser.add_argument("--starts", type=Path, default=ROOT / "data/si/train_more")
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    rows = list(islice(rows_of(arguments.starts), arguments.count))
    starts = [row.toatoms() for row in rows]
    potential = gdeq.load_potential(arguments.base)
    settings = {"solver": gdeq.LBFGS(), "fmax": 0.01, "max_steps": 500, "horizon": 20}
    ends = gdeq.relax(starts, potential, **settings).atoms
    targets = [
        {"sid": row.data["sid"], "pos_relaxed": end.positions}
        for row, end in zip(rows, ends, strict=True)
    ]
    copy(rows, arguments.folder, targets)
    print(f"{arguments.folder}: {len(starts)} structures")


if __name__ == "__main__":
    main()
