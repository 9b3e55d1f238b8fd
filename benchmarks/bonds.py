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
from benchmarks.peers.problems import PROBLEMS, ROOT, first_rows, opened
from benchmarks.peers.relaxations import add_limits, one_by_one, same_minimum, timed, times
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End, compare
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, Operator, delta_q

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


def energies(rows: Sequence[AtomicData], run: Measured) -> list[float]:
    """At the ends, eV."""
    ends = (torch.tensor(end, dtype=torch.float64) for end in run["positions"])
    return [
        float(at(row.to_ase()[0], end).get_potential_energy())
        for row, end in zip(rows, ends, strict=True)
    ]


def distances(
    rows: Sequence[AtomicData], operators: Sequence[Operator], run: Measured
) -> list[End]:
    """Of every end to its target."""
    found = []
    for k, (row, operator) in enumerate(zip(rows, operators, strict=True)):
        end = torch.tensor(run["positions"][k], dtype=row.pos.dtype)
        apart = delta_q(end, row.pos_relaxed, operator.structures, operator.pin)
        found.append(End(k, float(apart), False))
    return found


def on_sevennet(structures: int) -> tuple[list[AtomicData], list[Operator]]:
    """The first test slabs, in double, with what ``first_rows`` raises."""
    rows = first_rows(PROBLEMS["slabs"], structures, torch.float64)
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
    starts = [row.pos for row in rows]
    for name, solver in WAYS.items():
        solvers = [solver] * len(rows)
        kept(name, partial(timed, partial(one_by_one, operators, starts, solvers, *limits)))
    first = kept.known[next(iter(WAYS))]
    before = distances(rows, operators, first)
    lowest = [] if arguments.base else energies(rows, first)
    print_head(HEADER)
    for name in WAYS:
        run = kept.known[name]
        spent = run["evaluations"]
        same, asked = same_minimum(run, targets, operators, arguments.within)
        entries = ["", "", ""]
        if run is not first:
            found = compare(before, distances(rows, operators, run), Basin())
            wide = f"({found.log_low:+.3f} to {found.log_high:+.3f})"
            entries[:2] = f"{found.log_change:+.3f} {wide}", f"{found.better} : {found.worse}"
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
