"""What bonds in the first guess of the Hessian save on slabs, and where the relaxations end.

python -m benchmarks.bonds --structures 24                 # on SevenNet-0; needs the project's data extra
python -m benchmarks.bonds --structures 58 --base --folder runs/bonds_base  # on the small eSEN base

Both go on where they were. The first test slabs of data/slabs, to one fmax by our L-BFGS: as it is, with
a softer limit of its guess, and with that and bonds. Their targets are where ASE's BFGS ended on
SevenNet-0: on that potential "at the target" counts ends in the same minimum, within ``--within``, and
its energy is lower or higher than at the end of the first row by more than 5 meV. SevenNet-0 relaxes
adsorbates well; the base relaxes them badly.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ase
import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

import fairchem_gdeq as gdeq
from benchmarks.peers.kept import Kept, Measured
from benchmarks.peers.numbers import line, print_head, spread
from benchmarks.peers.problems import PROBLEMS, ROOT, opened
from benchmarks.peers.relaxations import Ended, add_limits, same_minimum, timed, times
from fairchem_gdeq.data.is2rs import IS2RSDataset, collate
from fairchem_gdeq.evaluation.comparison import mean_with_interval
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, Operator, delta_q, solve

sys.path.insert(0, str(ROOT / "data"))
from sevennet import sevennet

WAYS = {
    "as it is": LBFGS(),
    "`softest=2.5`": LBFGS(softest=2.5),
    "`softest=2.5`, `bonds=3.5`": LBFGS(softest=2.5, bonds=3.5),
    "`softest=2.5`, `bonds=7`": LBFGS(softest=2.5, bonds=7.0),
}
HEADER = (
    *("L-BFGS", "evaluations", "mean", "times the first", "converged", "at the target"),
    *("log(1 + dQ) against the first", "nearer : farther", "energy lower : higher"),
)
NEAR = 0.02  # change of log(1 + dQ)
APART = 0.005  # eV


def operator_of(row: AtomicData) -> Operator:
    """Of SevenNet-0 on one structure."""
    (atoms,) = row.to_ase()

    def forces(positions: Tensor) -> Tensor:
        return torch.as_tensor(at(atoms, positions).get_forces(apply_constraint=False))

    return IS2RS().operator_of(gdeq.from_callable(forces), row)


def at(atoms: ase.Atoms, positions: Tensor) -> ase.Atoms:
    """The structure at other positions, with SevenNet-0."""
    moved: ase.Atoms = atoms.copy()
    moved.positions, moved.calc = positions.numpy(), sevennet()
    return moved


def relaxed(
    rows: Sequence[AtomicData],
    operators: Sequence[Operator],
    solver: LBFGS,
    fmax: float,
    steps: int,
) -> list[Ended]:
    """Every structure by itself."""
    found = [
        solve(operator, row.pos, solver, fmax, steps)
        for row, operator in zip(rows, operators, strict=True)
    ]
    return [Ended(f.positions, int(f.evaluations), bool(f.converged)) for f in found]


def energies(rows: Sequence[AtomicData], run: Measured) -> list[float]:
    """At the ends, eV."""
    ends = (torch.tensor(end, dtype=torch.float64) for end in run["positions"])
    return [
        float(at(row.to_ase()[0], end).get_potential_energy())
        for row, end in zip(rows, ends, strict=True)
    ]


def delta_qs(rows: Sequence[AtomicData], operators: Sequence[Operator], run: Measured) -> Tensor:
    """Of every end [k] to its target."""
    found = []
    for row, operator, end in zip(rows, operators, run["positions"], strict=True):
        positions = torch.tensor(end, dtype=row.pos.dtype)
        found.append(delta_q(positions, row.pos_relaxed, operator.structures, operator.pin))
    return torch.cat(found)


def on_sevennet(structures: int) -> tuple[list[AtomicData], list[Operator]]:
    """The first test slabs, in double.

    Raises:
        SystemExit: there are not as many.
    """
    folders = [str(ROOT / "data" / folder) for folder in PROBLEMS["slabs"].data]
    data = IS2RSDataset({"src": folders})
    if structures > len(data):
        raise SystemExit(f"{', '.join(folders)} have {len(data)} structures, not {structures}")
    rows = [collate([data[i]]) for i in range(structures)]
    for row in rows:
        for key in ("pos", "cell", "mass", "pos_relaxed"):
            row[key] = row[key].double()
    return rows, [operator_of(row) for row in rows]


def on_base(structures: int) -> tuple[list[AtomicData], list[Operator]]:
    """The same on the eSEN base, in single precision as it is, with what ``opened`` raises."""
    given = opened(PROBLEMS["slabs"], structures)
    return given.rows, [given.operator(row) for row in given.rows]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_limits(parser)
    parser.add_argument("--base", action="store_true", help="eSEN in place of SevenNet-0")
    parser.add_argument("--folder", type=Path, default=Path("runs/bonds"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows, operators = (on_base if arguments.base else on_sevennet)(arguments.structures)
    limits = (arguments.fmax, arguments.max_steps)
    keys = ("structures", "base", "fmax", "max_steps", "threads")
    kept = Kept(arguments.folder / "bonds.jsonl", {key: getattr(arguments, key) for key in keys})
    targets: Measured = {
        "converged": [True] * len(rows),
        "positions": [row.pos_relaxed.tolist() for row in rows],
    }
    for name, solver in WAYS.items():
        kept(name, partial(timed, partial(relaxed, rows, operators, solver, *limits)))
    first = kept.known[next(iter(WAYS))]
    there = delta_qs(rows, operators, first).log1p()
    lowest = [] if arguments.base else energies(rows, first)
    print_head(HEADER)
    for name in WAYS:
        run = kept.known[name]
        spent = run["evaluations"]
        same, asked = same_minimum(run, targets, operators, arguments.within)
        nearer = delta_qs(rows, operators, run).log1p() - there
        entries = ["", "", ""]
        if run is not first:
            mean, low, high = mean_with_interval(nearer.double().numpy())
            closer, off = int((nearer < -NEAR).sum()), int((nearer > NEAR).sum())
            entries[:2] = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", f"{closer} : {off}"
        if lowest and run is not first:
            change = [b - a for a, b in zip(lowest, energies(rows, run), strict=True)]
            entries[2] = f"{sum(d < -APART for d in change)} : {sum(d > APART for d in change)}"
        print(
            line(
                *(name, spread(spent, 0), f"{sum(spent) / len(spent):.1f}"),
                "" if run is first else times(run, first),
                f"{sum(run['converged'])} of {len(spent)}",
                f"{same} of {asked}",
                *entries,
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
