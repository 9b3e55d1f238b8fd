"""Do potentials relax to the minima of density-functional theory? On the defects of ``data/si/dft``.

    python -m benchmarks.against_dft base=data/si/base/esen_all_frames.pt tuned=CHECKPOINT \\
        --references sevennet chgnet

CHECKPOINT is ``runs/si/gdeq/results/best/inference_ckpt.pt`` after command 1 of the README. Checkpoints
relax by plain steps and then L-BFGS, as ``configs/si`` does. References relax by ASE's BFGS, as targets
of the other sets were made; they need the ``data`` extra, or ``chgnet``. Each row is compared with the
first model by pairs. Errors of forces are those on the frames of the relaxations. The column "from the
minimum" is of relaxations that begin at the theory's own minima: how far a potential leaves these is
what no choice of the basin can mend.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

import fairchem_gdeq as gdeq
from benchmarks.peers.numbers import line, print_head
from benchmarks.strict_basins import targets_of
from benchmarks.subsets import rows_of
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End, compare
from fairchem_gdeq.evaluation.scoring import UNRELAXED

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data"))
import packing  # noqa: E402
from references import REFERENCES  # noqa: E402
from sevennet import relax  # noqa: E402

FMAX, MAX_STEPS, HORIZON = 0.02, 400, 10
HEADER = (
    *("", "forces (eV/A)", "Delta Q mean", "median", "basins", "from the minimum, mean", "basins"),
    *("log(1 + dQ)", "nearer : farther"),
)
Relax = Callable[[Sequence[Atoms]], Sequence[Atoms]]


@dataclass(frozen=True)
class Minima:
    """Structures and what the theory says of them.

    Attributes:
        starts, targets: before and after its relaxations.
        frames: structures between, with its forces.
    """

    starts: list[Atoms]
    targets: list[Atoms]
    frames: list[Atoms]


def read(folder: Path) -> Minima:
    """``test`` and ``test_frames`` of the folder."""
    starts, frames = (
        [row.toatoms() for row in rows_of(folder / name)] for name in ("test", "test_frames")
    )
    return Minima(starts, list(targets_of([folder / "test"]).values()), frames)


def by_reference(calculator: Calculator, starts: Sequence[Atoms]) -> list[Atoms]:
    """Ends of ASE's BFGS."""
    ends = []
    for start in starts:
        atoms = start.copy()
        atoms.calc = calculator
        ends.append(relax(atoms, FMAX, MAX_STEPS)[-1])
    return ends


def by_model(potential: gdeq.Potential, starts: Sequence[Atoms]) -> list[Atoms]:
    """Ends as predictions are made."""
    return gdeq.relax(
        starts,
        potential,
        fmax=FMAX,
        max_steps=MAX_STEPS,
        solver=gdeq.LBFGS(),
        horizon=HORIZON,
        progress=False,
    ).atoms


def force_error(forces: Callable[[Atoms], NDArray[np.float64]], frames: Sequence[Atoms]) -> float:
    """Mean absolute error of a component, eV/Angstrom."""
    errors = [np.abs(forces(frame) - frame.get_forces()).mean() for frame in frames]
    return float(np.mean(errors))


def forces_of(calculator: Calculator) -> Callable[[Atoms], NDArray[np.float64]]:
    """Of a structure, [n, 3]."""

    def forces(atoms: Atoms) -> NDArray[np.float64]:
        found = atoms.copy()
        found.calc = calculator
        return np.asarray(found.get_forces())

    return forces


def distances(ends: Sequence[Atoms], targets: Sequence[Atoms]) -> list[End]:
    """Delta Q of each."""
    return [
        End(i, packing.delta_q(target, packing.displacements(target, end)), False)
        for i, (end, target) in enumerate(zip(ends, targets, strict=True))
    ]


@dataclass(frozen=True)
class Measured:
    """A potential on some minima.

    Attributes:
        error: of its forces, eV/Angstrom.
        ends: of relaxations from the theory's starts.
        kept: of relaxations from the theory's minima.
    """

    error: float
    ends: list[End]
    kept: list[End]


def measured(minima: Minima, relaxed: Relax, calculator: Calculator) -> Measured:
    """A potential, given how it relaxes and what asks it for forces."""
    ends, kept = (
        distances(relaxed(starts), minima.targets) for starts in (minima.starts, minima.targets)
    )
    return Measured(force_error(forces_of(calculator), minima.frames), ends, kept)


def far(ends: Sequence[End]) -> tuple[str, str, str]:
    """Mean and median of Delta Q, and right basins."""
    values = np.array([end.delta_q for end in ends])
    right = f"{(values < Basin().delta_q).sum()} of {len(values)}"
    return f"{values.mean():.3f}", f"{np.median(values):.3f}", right


def row(name: str, found: Measured, first: Measured | None) -> str:
    """Of the table, compared with the first model's."""
    change = ["", ""]
    if first is not None:
        pairs = compare(first.ends, found.ends, Basin())
        change = [
            f"{pairs.log_change:+.3f} ({pairs.log_low:+.3f} to {pairs.log_high:+.3f})",
            f"{pairs.better} : {pairs.worse}",
        ]
    kept, _, stayed = far(found.kept)
    return line(name, f"{found.error:.4f}", *far(found.ends), kept, stayed, *change)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT; the first one is the base")
    parser.add_argument("--references", nargs="*", choices=REFERENCES, default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "data/si/dft")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    minima = read(arguments.folder)
    print_head(HEADER)
    print(line(UNRELAXED, "", *far(distances(minima.starts, minima.targets)), "", "", "", ""))
    base: Measured | None = None
    for each in arguments.models:
        name, _, path = each.partition("=")
        potential = gdeq.load_potential(path)
        found = measured(minima, partial(by_model, potential), potential.ase_calculator())
        print(row(name, found, base), flush=True)
        base = base or found
    for name in arguments.references:
        calculator = REFERENCES[name]()
        found = measured(minima, partial(by_reference, calculator), calculator)
        print(row(name, found, base), flush=True)


if __name__ == "__main__":
    main()
