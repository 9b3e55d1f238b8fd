"""A relaxation in a small file: its start, its end, and a few structures between, with labels.

A whole trajectory takes 250 KB, this about 8 KB, so that it can lie in the repository and a later
session, on another machine, goes on where the last one stopped.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase_lmdb import evenly_in_force

LENGTH = 1e-5  # Angstrom: positions are whole multiples of it
FORCE = 1e-3  # eV/Angstrom: likewise
ENERGY = 5  # decimals of an energy in eV


@dataclass(frozen=True)
class Record:
    """What is kept of a relaxation.

    Attributes:
        frames: structures with energy and forces; the first is the start, the last is the end.
        steps: the optimizer step of each.
        max_forces: the largest force on an atom in each before rounding, eV/Angstrom; fixed atoms
            have none.
    """

    frames: list[Atoms]
    steps: list[int]
    max_forces: list[float]


def save(file: Path, trajectory: list[Atoms], count: int) -> None:
    """Keep at most ``count`` structures of a relaxation, but always its start and its end.

    The file appears under its name only when it is complete.
    """
    steps = evenly_in_force(trajectory, count)
    kept = [trajectory[i] for i in steps]
    first = kept[0]
    positions = np.stack([(frame.positions / LENGTH).round() for frame in kept]).astype(np.int64)
    forces = np.stack([frame.get_forces() for frame in kept])
    fixed = np.zeros(len(first), dtype=bool)
    for constraint in first.constraints:
        fixed[constraint.index] = True
    partial_file = file.with_suffix(".partial")
    with partial_file.open("wb") as stream:
        np.savez_compressed(
            stream,
            numbers=first.numbers.astype(np.uint8),
            tags=first.get_tags().astype(np.int8),
            fixed=fixed,
            cell=first.cell.array,
            steps=np.array(steps, dtype=np.int32),
            energies=np.array([frame.get_potential_energy() for frame in kept]).round(ENERGY),
            # From frame to frame atoms move little, and small numbers take little room.
            moves=np.diff(positions, axis=0, prepend=0).astype(np.int32),
            forces=(forces / FORCE).round().astype(np.int32),
            max_forces=np.linalg.norm(forces, axis=-1).max(-1),
        )
    os.replace(partial_file, file)


def finished(file: Path) -> bool:
    """Whether a complete record lies there; one that was cut off is none."""
    return zipfile.is_zipfile(file)


def load(file: Path) -> Record:
    """Read a record; the frames carry their labels.

    Raises:
        ValueError: the file is not a complete record.
    """
    if not finished(file):
        raise ValueError(
            f"{file} is no complete record of a relaxation; delete it, and the action relax of the "
            "script that made it makes it again"
        )
    with np.load(file) as kept:
        part = dict(kept)
    constraint = [FixAtoms(mask=part["fixed"])] if part["fixed"].any() else None
    frames = []
    for positions, forces, energy in zip(
        part["moves"].cumsum(0) * LENGTH, part["forces"] * FORCE, part["energies"], strict=True
    ):
        atoms = Atoms(
            part["numbers"],
            positions=positions.round(5),
            cell=part["cell"],
            pbc=True,
            tags=part["tags"],
            constraint=constraint,
        )
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces.round(3))
        frames.append(atoms)
    return Record(frames, part["steps"].tolist(), part["max_forces"].tolist())
