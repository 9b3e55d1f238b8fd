"""Relaxations on SevenNet-0, whose weights ship in the ``sevenn`` package (the ``data`` extra)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory
from ase.optimize import BFGS
from tqdm import tqdm

Start = tuple[str, Callable[[], Atoms]]  # a structure's name and how it is built


@cache
def _calculator() -> object:
    import torch
    from sevenn.calculator import SevenNetCalculator

    torch.set_num_threads(1)
    return SevenNetCalculator("7net-0", device="cpu")


def _relax(start: Start, work: Path, fmax: float, max_steps: int) -> None:
    """Keep the whole trajectory as ``work/<name>.traj``, written atomically."""
    name, build = start
    final, partial_file = work / f"{name}.traj", work / f"{name}.partial"
    if final.exists():
        return
    atoms = build()
    atoms.calc = _calculator()
    with Trajectory(partial_file, "w", atoms) as trajectory:
        optimizer = BFGS(atoms, logfile=None, maxstep=0.1)
        optimizer.attach(trajectory)
        optimizer.run(fmax=fmax, steps=max_steps)
    os.replace(partial_file, final)


def relax_all(
    starts: list[Start], work: Path, workers: int, fmax: float = 0.01, max_steps: int = 400
) -> None:
    """Relax every start that has no trajectory in ``work`` yet, in one-threaded processes.

    Args:
        starts: names and builders; a builder is called in the worker, so it must pickle.
        work: folder of the trajectories.
        workers: processes.
        fmax: eV/Angstrom.
        max_steps: steps after which a relaxation is left as it is.
    """
    work.mkdir(parents=True, exist_ok=True)
    todo = [start for start in starts if not (work / f"{start[0]}.traj").exists()]
    over(partial(_relax, work=work, fmax=fmax, max_steps=max_steps), todo, workers, "relax")


def over(task: Callable[[Any], object], todo: list[Any], workers: int, name: str) -> None:
    """Call a picklable ``task`` on each of ``todo`` in one-threaded processes, with a bar."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in tqdm(pool.imap_unordered(task, todo), total=len(todo), desc=name):
            pass


def label(atoms: Atoms) -> None:
    """Give a structure energy and forces."""
    atoms.calc = _calculator()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
