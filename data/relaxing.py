"""Records of many relaxations, made in several processes, whatever relaxes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import records
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
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


def make_all(starts: list[Start], make: Callable[[Start], None], workers: int) -> None:
    """Make, in this order and in one-threaded processes, what has no complete record yet.

    Args:
        starts: what to relax.
        make: makes the record of one; it must pickle.
        workers: processes.

    Raises:
        SystemExit: some failed, with the error of each; all others were done.
    """
    todo = [start for start in starts if not records.finished(start.file)]
    for start in todo:
        start.file.parent.mkdir(parents=True, exist_ok=True)
    failed = [message for message in over(partial(failure, make), todo, workers) if message]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(todo)} relaxations failed:\n" + "\n".join(failed))


def failure(make: Callable[[Start], None], start: Start) -> str | None:
    """Make the record of one; if that fails, how, so that others go on."""
    try:
        make(start)
    except Exception as error:
        return f"{start.file.stem}: {type(error).__name__}: {error}"
    return None


def over(task: Callable[[Start], str | None], todo: list[Start], workers: int) -> list[str | None]:
    """What a task returns for each, in any order, with a bar."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(tqdm(pool.imap_unordered(task, todo), total=len(todo), desc="relax"))


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
