"""From records of relaxations to the rows and statistics of a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase_lmdb import summary
from numpy.typing import NDArray
from records import Record, finished, load


class Incomplete(Exception):
    """Some relaxations of a split are not there yet."""


def packed(out: Path, split: str) -> bool:
    """Whether the split's folder is there."""
    return (out / split / "data.aselmdb").exists()


def read_split(split: str, files: dict[str, Path]) -> dict[str, Record]:
    """The records of a split by name.

    Raises:
        Incomplete: not all of them are there.
    """
    missing = [name for name, file in files.items() if not finished(file)]
    if missing:
        raise Incomplete(
            f"{split}: {len(files) - len(missing)} of {len(files)} relaxations are there, "
            f"{missing[0]} is the first that is missing. Its folder is left as it is; go on with "
            "the action relax of the same script"
        )
    return {name: load(file) for name, file in files.items()}


def each(splits: list[str], pack: Callable[[str], None]) -> None:
    """Pack the splits that are complete.

    Raises:
        SystemExit: some are not; it names them.
    """
    incomplete = []
    for split in splits:
        try:
            pack(split)
        except Incomplete as error:
            incomplete.append(str(error))
    if incomplete:
        raise SystemExit("\n".join(incomplete))


def start_of(record: Record) -> Atoms:
    """The start without its labels."""
    start = record.frames[0].copy()
    start.calc = None
    return start


def labelled(frame: Atoms) -> Atoms:
    """A frame with its labels, rounded (1e-4 Angstrom, 1e-3 eV/Angstrom) to keep files small.

    Forces are as ASE gives them, zero on fixed atoms: training leaves those out.
    """
    out = frame.copy()
    out.info = {}
    out.positions = out.positions.round(4)
    forces = frame.get_forces().round(3)
    energy = round(float(frame.get_potential_energy()), 4)
    out.calc = SinglePointCalculator(out, energy=energy, forces=forces)
    return out


def frames_of(records: dict[str, Record]) -> list[tuple[Atoms, dict[str, object]]]:
    """All structures that were kept, with rounded energy and forces, each named by its step."""
    return [
        (labelled(frame), {"sid": f"{name}_{step}"})
        for name, record in records.items()
        for frame, step in zip(record.frames, record.steps, strict=True)
    ]


def displacements(start: Atoms, end: Atoms) -> NDArray[np.float64]:
    """From start to end [n, 3], Angstrom; without the mass-weighted shift where no atom is fixed."""
    moves: NDArray[np.float64] = find_mic(end.positions - start.positions, start.cell)[0]
    if start.constraints:
        return moves
    masses = start.get_masses()[:, None]
    return moves - (masses * moves).sum(0) / masses.sum()


def delta_q(start: Atoms, moves: NDArray[np.float64]) -> float:
    """Delta Q (amu^1/2 Angstrom) of displacements [n, 3] from there."""
    return float(np.sqrt((start.get_masses()[:, None] * moves**2).sum()))


def measured(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """How far the relaxations went: Delta Q (amu^1/2 Angstrom), Angstrom, steps, eV/Angstrom."""
    values: dict[str, list[float]] = {}
    for record in records:
        first, last = record.frames[0], record.frames[-1]
        moves = displacements(first, last)
        of_this = {
            "delta_q": delta_q(first, moves),
            "max_displacement": float(np.linalg.norm(moves, axis=1).max()),
            "steps": record.steps[-1],
            "max_force_at_start": record.max_forces[0],
        }
        for key, value in of_this.items():
            values.setdefault(key, []).append(value)
    return {key: summary(of_all) for key, of_all in values.items()}


def add_statistics(out: Path, split: str, found: dict[str, object]) -> None:
    """Put those of a split into ``statistics.json``."""
    file = out / "statistics.json"
    statistics = json.loads(file.read_text()) if file.exists() else {}
    statistics[split] = found
    file.write_text(json.dumps(statistics, indent=1) + "\n")
