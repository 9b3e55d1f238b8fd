"""Label with SevenNet-0 what a base potential meets in its own relaxations.

    python data/slabs/explore.py BASE.pt --workers 2              # resumable
    python data/slabs/explore.py BETTER_BASE.pt --round 2         # other starts
    python data/slabs/generate.py pack --splits train             # puts them into train_frames

A base that is trained on another potential's relaxations alone is right where those went. Its own go
elsewhere, and there it must be told.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import write
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import load_inference_model, load_tasks
from plan import splits
from systems import System, build

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.fairchem2.fields import HydraForceField, hydra_model
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, solve

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from sevennet import label, over  # noqa: E402

TURNS = {"train": 3, "other_metals": 2}  # new starts of each system in a round
FRAMES = 6  # of each relaxation: its start, its end, and others evenly between them
STEPS = 60
LARGEST = 20.0  # eV/Angstrom: frames with more are left out, their errors would outweigh all others


def starts(which: int) -> list[System]:
    """The training systems and the other metals again, oriented otherwise in each round (from 1)."""
    systems = splits()
    return [
        replace(system, turn=turn)
        for split, turns in TURNS.items()
        for system in systems[split]
        for turn in range((which - 1) * turns + 1, which * turns + 1)
    ]


@cache
def _base(path: str) -> tuple[HydraModel, list[Task]]:
    torch.set_num_threads(1)
    model = load_inference_model(path, use_ema=True, return_checkpoint=False)
    return hydra_model(model).eval(), load_tasks(path)


@torch.no_grad()
def visited(start: Atoms, path: str) -> list[Atoms]:
    """A few structures on the way of the base's relaxation from ``start``."""
    model, tasks = _base(path)
    (name,) = {name for task in tasks for name in task.datasets}
    row = AtomicData.from_ase(start, task_name=name, r_data_keys=["sid"])
    batch = collate([row])
    operator = IS2RS().operator_of(HydraForceField.unfrozen(model, tasks, batch), batch)
    way: list[torch.Tensor] = [batch.pos]

    def keep(positions: torch.Tensor, _step: int) -> None:
        way.append(positions.clone())

    solver = LBFGS(softest=10.0)
    solve(operator, batch.pos, solver, fmax=0.02, max_steps=STEPS, observe=keep)
    wanted = torch.linspace(0, len(way) - 1, FRAMES).round().long().unique()
    out = []
    for k in wanted.tolist():
        atoms = start.copy()
        atoms.positions = way[k].double().numpy()
        out.append(atoms)
    return out


def explore(system: System, base: str, work: Path) -> None:
    """Write ``work/<name>.traj``, atomically."""
    final, partial_file = work / f"{system.name}.traj", work / f"{system.name}.partial"
    if final.exists():
        return
    start = build(system)
    start.info["sid"] = system.name
    frames = visited(start, base)
    for frame in frames:
        label(frame)
    sound = [f for f in frames if np.linalg.norm(f.get_forces(), axis=1).max() < LARGEST]
    write(partial_file, sound, format="traj")
    os.replace(partial_file, final)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", help="an inference checkpoint of fairchem 2")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--work", type=Path, default=HERE / "work/explored")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    task = partial(explore, base=arguments.base, work=arguments.work)
    over(task, starts(arguments.round), arguments.workers, "explore")


if __name__ == "__main__":
    main()
