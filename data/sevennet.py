"""Relaxations on SevenNet-0, whose weights ship in the ``sevenn`` package (the ``data`` extra)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import records
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from relaxing import Start, make_all, without_drift


@cache
def sevennet() -> Calculator:
    """SevenNet-0 on one thread, one of each process."""
    import torch
    from sevenn.calculator import SevenNetCalculator

    torch.set_num_threads(1)
    return SevenNetCalculator("7net-0", device="cpu")


def relax(atoms: Atoms, fmax: float, max_steps: int) -> list[Atoms]:
    """Every structure of ASE's BFGS from ``atoms``, which has a calculator, with its labels."""
    trajectory: list[Atoms] = []

    def keep() -> None:
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, **labels)
        trajectory.append(frame)

    optimizer = BFGS(atoms, logfile=None, maxstep=0.1)
    optimizer.attach(keep)
    optimizer.run(fmax=fmax, steps=max_steps)
    return trajectory


def relax_one(
    start: Start, calculator: Callable[[], Calculator], fmax: float, max_steps: int
) -> None:
    """Make the record of one start."""
    atoms = start.build()
    atoms.calc = calculator()
    trajectory = relax(atoms, fmax, max_steps)
    if not atoms.constraints:
        trajectory = without_drift(trajectory)
    records.save(start.file, trajectory, start.frames)


def relax_all(
    starts: list[Start],
    workers: int,
    fmax: float = 0.01,
    max_steps: int = 400,
    calculator: Callable[[], Calculator] = sevennet,
) -> None:
    """Relax what has no complete record yet.

    Args:
        starts, workers: as of ``make_all``, with what it raises.
        fmax: eV/Angstrom.
        max_steps: steps after which a relaxation is left as it is.
        calculator: makes the reference, once or more in each process.
    """
    one = partial(relax_one, calculator=calculator, fmax=fmax, max_steps=max_steps)
    make_all(starts, one, workers)


def label(atoms: Atoms) -> None:
    """Give a structure energy and forces."""
    atoms.calc = sevennet()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
