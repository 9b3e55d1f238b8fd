"""Are predictions in the basins of their targets? Each is relaxed on the reference, SevenNet-0.

    fairchem -c configs/si/gdeq.yml --mode train
    fairchem -c configs/si/gdeq.yml --mode predict split=test
    fairchem -c configs/si/gdeq.yml --mode predict split=test checkpoint=base job.run_dir=runs/si/untuned
    python -m benchmarks.strict_basins base=BASE tuned=TUNED --targets data/si/test data/si/test_more

TUNED is ``runs/si/gdeq/results/predictions/test.extxyz``, and BASE that of ``runs/si/untuned/gdeq``.

A prediction is in the right basin if its relaxation on the reference ends at the target, no free atom
farther from there than ``--within``. Beside it stands the share whose Delta Q says so, and how many
predictions the two criteria judge otherwise. Each row is compared with the first by pairs, and a second
table says in which structures Delta Q changes. Relaxations lie beside the predictions; the same command
goes on where it was. Needs the project's ``data`` extra.
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

from benchmarks.peers.numbers import line, print_head
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import mean_with_interval

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import packing
import records
from relaxing import Start
from sevennet import relax_all, sevennet

FMAX, MAX_STEPS = 0.01, 400  # as the targets were made
HEADER = (
    *("predictions of", "right on the reference", f"Delta Q below {Basin().delta_q:g}"),
    *("right, yet farther", "nearer, yet elsewhere", "gained : lost", "change of the share"),
)
PARTS = (
    *("right on the reference", "structures", "Delta Q mean, before and after", "median"),
    *("log(1 + dQ)", "part of the whole change"),
)
GROUPS = (
    ("before and after", True, True),
    ("neither", False, False),
    ("only after", False, True),
    ("only before", True, False),
)


@dataclass(frozen=True)
class Judged:
    """A prediction, by both criteria.

    Attributes:
        name: of the structure.
        converged: whether the reference's relaxation did.
        strictly: whether it ended at the target.
        delta_q: of the prediction, amu^0.5 Angstrom.
    """

    name: str
    converged: bool
    strictly: bool
    delta_q: float

    @property
    def by_delta_q(self) -> bool:
        """Whether the prediction's Delta Q is that of a right basin."""
        return self.delta_q < Basin().delta_q


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
                f"{file} is a relaxation of another prediction of {name}: remove {folder}"
            )
        after, before = (
            packing.displacements(target, where) for where in (record.frames[-1], atoms)
        )
        converged = record.max_forces[-1] <= FMAX
        right = converged and np.linalg.norm(after, axis=1).max() <= within
        yield Judged(name, converged, bool(right), packing.delta_q(target, before))


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


def paired(
    name: str, judged: Sequence[Judged], first: Sequence[Judged]
) -> list[tuple[Judged, Judged]]:
    """Each structure with the first model and with this one.

    Raises:
        SystemExit: they are not of the same structures.
    """
    before = {each.name: each for each in first}
    if before.keys() != {each.name for each in judged}:
        raise SystemExit(f"{name} is of other structures than the first: predict the same split")
    return [(before[each.name], each) for each in judged]


def groups(name: str, judged: Sequence[Judged], first: Sequence[Judged]) -> Iterator[str]:
    """Lines of the second table: structures by where they ended with the first model and with this one.

    The last entry is what a group adds to the mean change of log(1 + Delta Q) of all.
    """
    pairs = paired(name, judged, first)
    for title, was, now in GROUPS:
        far = [(a.delta_q, b.delta_q) for a, b in pairs if (a.strictly, b.strictly) == (was, now)]
        if not far:
            continue
        old, new = np.array(far).T
        logs = np.log1p(new) - np.log1p(old)
        mean, low, high = mean_with_interval(logs)
        means = f"{old.mean():.2f}, {new.mean():.2f}"
        medians = f"{np.median(old):.2f}, {np.median(new):.2f}"
        change, part = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", f"{logs.sum() / len(pairs):+.3f}"
        yield line(f"{name}, {title}", str(len(far)), means, medians, change, part)


def row(name: str, judged: Sequence[Judged], first: Sequence[Judged] | None) -> str:
    """Of the table, by pairs with the first row's; raises as ``paired``."""
    counts = Counter((each.strictly, each.by_delta_q) for each in judged)
    right, near = (
        f"{of} of {len(judged)} ({of / len(judged):.1%})"
        for of in (
            sum(each.strictly for each in judged),
            sum(each.by_delta_q for each in judged),
        )
    )
    change = ["", ""]
    if first is not None:
        pairs = paired(name, judged, first)
        turns = np.array([float(now.strictly) - was.strictly for was, now in pairs])
        share, low, high = mean_with_interval(turns)
        change = [
            f"{(turns > 0).sum()} : {(turns < 0).sum()}",
            f"{share:+.3f} ({low:+.3f} to {high:+.3f})",
        ]
    return line(name, right, near, str(counts[True, False]), str(counts[False, True]), *change)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "predictions", nargs="+", help="NAME=FILE, the .extxyz that --mode predict writes"
    )
    parser.add_argument(
        "--targets", type=Path, nargs="+", required=True, help="the split's folders"
    )
    parser.add_argument("--within", type=float, default=0.1, help="Angstrom")
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    arguments = parser.parse_args()
    targets = targets_of(arguments.targets)
    found: dict[str, list[Judged]] = {}
    for each in arguments.predictions:
        name, _, path = each.partition("=")
        file = Path(path)
        images = {str(atoms.info["sid"]): atoms for atoms in ase.io.read(file, ":")}
        folder = file.with_name(f"{file.stem}_on_reference")
        found[name] = compare(images, targets, folder, arguments.within, arguments.workers)
    first = next(iter(found.values()))
    print_head(HEADER)
    for name, judged in found.items():
        print(row(name, judged, None if judged is first else first))
        if lost := sum(not each.converged for each in judged):
            print(
                f"{name}: {lost} did not converge on the reference and count as wrong",
                file=sys.stderr,
            )
    if len(found) > 1:
        print()
        print_head(PARTS)
    for name, judged in found.items():
        if judged is not first:
            print(*groups(name, judged, first), sep="\n")


if __name__ == "__main__":
    main()
