"""Are predictions in the basins of their targets? Each is relaxed on the reference, SevenNet-0.

    fairchem -c configs/si/gdeq.yml --mode predict
    python -m benchmarks.strict_basins PREDICTIONS data/si/test data/si/test_more

PREDICTIONS is ``runs/si/gdeq/results/predictions/test.extxyz``.

A prediction is in the right basin if its relaxation on the reference ends at the target, no free atom
farther from there than ``--within``. Beside it stands the share whose Delta Q says so, and how many
predictions the two criteria judge alike. It goes on where it was. Needs the project's ``data`` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.db import connect

from fairchem_gdeq.evaluation.basin import Basin

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import packing
import records
from relaxing import Start
from sevennet import relax_all, sevennet

FMAX, MAX_STEPS = 0.01, 400  # as the targets were made


@dataclass(frozen=True)
class Judged:
    """A prediction, by both criteria.

    Attributes:
        name: of the structure.
        converged: whether the reference's relaxation did.
        strictly: whether it ended at the target.
        by_delta_q: whether the prediction's Delta Q is that of a right basin.
    """

    name: str
    converged: bool
    strictly: bool
    by_delta_q: bool


def targets_of(folders: Sequence[Path]) -> dict[str, Atoms]:
    """Relaxed structures by their names."""
    found = {}
    for folder in folders:
        with connect(folder / "data.aselmdb", type="aselmdb", readonly=True) as database:
            for row in database.select():
                atoms = row.toatoms()
                atoms.set_positions(row.data["pos_relaxed"], apply_constraint=False)
                found[str(row.data["sid"])] = atoms
    return found


def judge(
    predictions: Mapping[str, Atoms], targets: Mapping[str, Atoms], folder: Path, within: float
) -> Iterator[Judged]:
    """Each prediction, by its relaxation that lies in the folder.

    Raises:
        SystemExit: a relaxation began elsewhere.
    """
    for name, atoms in predictions.items():
        file, target = folder / f"{name}.npz", targets[name]
        record = records.load(file)
        if not np.allclose(record.frames[0].positions, atoms.positions, rtol=0, atol=1e-4):
            raise SystemExit(
                f"{file} is a relaxation of another prediction of {name}: give a new --folder"
            )
        after, before = (
            packing.displacements(target, where) for where in (record.frames[-1], atoms)
        )
        converged = record.max_forces[-1] <= FMAX
        right = converged and np.linalg.norm(after, axis=1).max() <= within
        near = packing.delta_q(target, before) < Basin().delta_q
        yield Judged(name, converged, bool(right), near)


def compare(
    predictions: Mapping[str, Atoms],
    targets: Mapping[str, Atoms],
    folder: Path,
    within: float,
    workers: int,
    reference: Callable[[], Calculator] = sevennet,
) -> list[Judged]:
    """Relax what is not relaxed yet, and judge.

    Raises:
        SystemExit: a prediction is of no target, or relaxations failed; says which.
    """
    if strange := predictions.keys() - targets.keys():
        raise SystemExit(f"{len(strange)} predictions have no target, such as {min(strange)}")
    starts = [Start(folder / f"{n}.npz", partial(Atoms.copy, a), 2) for n, a in predictions.items()]
    relax_all(starts, workers, FMAX, MAX_STEPS, reference)
    return list(judge(predictions, targets, folder, within))


def main() -> None:
    """Print both shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("predictions", type=Path, help="the .extxyz that --mode predict writes")
    parser.add_argument("targets", type=Path, nargs="+", help="folders of the split")
    parser.add_argument("--folder", type=Path, help="of relaxations; default: beside predictions")
    parser.add_argument("--within", type=float, default=0.1, help="Angstrom")
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    arguments = parser.parse_args()
    images = ase.io.read(arguments.predictions, ":")
    predictions = {str(atoms.info["sid"]): atoms for atoms in images}
    own = arguments.predictions.with_name(f"{arguments.predictions.stem}_on_reference")
    folder = arguments.folder or own
    targets = targets_of(arguments.targets)
    judged = compare(predictions, targets, folder, arguments.within, arguments.workers)
    counts = Counter((each.strictly, each.by_delta_q) for each in judged)
    total = len(judged)
    strictly = counts[True, True] + counts[True, False]
    by_delta_q = counts[True, True] + counts[False, True]
    lost = sum(not each.converged for each in judged)
    print(f"{total} predictions, {lost} of which did not converge on the reference")
    print(f"in the right basin on the reference: {strictly} ({strictly / total:.1%})")
    print(f"by Delta Q below {Basin().delta_q:g}: {by_delta_q} ({by_delta_q / total:.1%})")
    print(
        f"alike: {counts[True, True] + counts[False, False]}; {counts[True, False]} are right and"
    )
    print(f"farther than that, {counts[False, True]} nearer and in another basin")


if __name__ == "__main__":
    main()
