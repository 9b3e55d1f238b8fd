"""Relaxations on SevenNet-0, whose weights ship in the ``sevenn`` package (the ``data`` extra)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import records
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from tqdm import tqdm


@dataclass(frozen=True)
class Start:
    """A relaxation to do.

    Attributes:
        file: the record it becomes (``records.py``).
        build: makes the structure; it is called in the worker, so it must pickle.
        frames: how many structures are kept, at most; start and end always are.
    """

    file: Path
    build: Callable[[], Atoms]
    frames: int


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


def without_drift(trajectory: list[Atoms]) -> list[Atoms]:
    """The same frames with the centroid where it was at the start.

    Forces sum to zero only to single precision, and in a long relaxation BFGS can take that for a
    soft mode: one crystal of the silicon set slid by several Angstrom as a rigid body.
    """
    first = trajectory[0].positions.copy()
    for atoms in trajectory:
        forces, energy = atoms.get_forces(), atoms.get_potential_energy()
        atoms.positions -= (atoms.positions - first).mean(0)
        atoms.calc = SinglePointCalculator(atoms, forces=forces, energy=energy)
    return trajectory


def relax_one(
    start: Start, calculator: Callable[[], Calculator], fmax: float, max_steps: int
) -> str | None:
    """Make the record of one start; if that fails, say how, so that others go on."""
    try:
        atoms = start.build()
        atoms.calc = calculator()
        trajectory = relax(atoms, fmax, max_steps)
        if not atoms.constraints:
            trajectory = without_drift(trajectory)
        records.save(start.file, trajectory, start.frames)
    except Exception as error:
        return f"{start.file.stem}: {type(error).__name__}: {error}"
    return None


def relax_all(
    starts: list[Start],
    workers: int,
    fmax: float = 0.01,
    max_steps: int = 400,
    calculator: Callable[[], Calculator] = sevennet,
) -> None:
    """Relax, in this order and in one-threaded processes, what has no complete record yet.

    Args:
        starts: what to relax.
        workers: processes.
        fmax: eV/Angstrom.
        max_steps: steps after which a relaxation is left as it is.
        calculator: makes the reference, once or more in each process.

    Raises:
        SystemExit: some failed; all others were done.
    """
    todo = [start for start in starts if not records.finished(start.file)]
    for start in todo:
        start.file.parent.mkdir(parents=True, exist_ok=True)
    one = partial(relax_one, calculator=calculator, fmax=fmax, max_steps=max_steps)
    failed = [message for message in over(one, todo, workers, "relax") if message]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(todo)} relaxations failed:\n" + "\n".join(failed))


def over(task: Callable[[Any], Any], todo: list[Any], workers: int, name: str) -> list[Any]:
    """What a picklable ``task`` returns for each of ``todo``, in any order, with a bar.

    The processes are one-threaded.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(tqdm(pool.imap_unordered(task, todo), total=len(todo), desc=name))


def label(atoms: Atoms) -> None:
    """Give a structure energy and forces."""
    atoms.calc = sevennet()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
