"""Relax adsorbates on metal slabs on SevenNet-0 and pack them as IS2RS sets.

    python data/slabs/generate.py relax --workers 2     # resumable: finished relaxations are kept
    python data/slabs/generate.py pack                  # writes train/ ... and statistics.json here

Frames that ``explore.py`` has labelled are packed too.

Needs the ``data`` extra of the project (the ``sevenn`` package, which ships the weights).
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from anomalies import anomaly
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.io import read
from systems import System, build, other_metals, titanium

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from ase_lmdb import evenly_in_force, summary, write  # noqa: E402
from sevennet import relax_all  # noqa: E402

FMAX = 0.01  # eV/Angstrom, of the free atoms
MAX_STEPS = 400
FRAMES = 12  # kept of each relaxation that the base is trained on
SEED = 2025
TEST, VAL = 0.2, 0.15  # parts of the 40 titanium systems of two sites a fragment


def splits() -> dict[str, list[System]]:
    """Test and validation out of the 40 systems of two sites a fragment; all else trains."""
    systems = titanium(sites=2)
    order = np.random.default_rng(SEED).permutation(len(systems))
    test, val = round(TEST * len(order)), round(VAL * len(order))
    held = {"test": order[:test], "val": order[test : test + val]}
    out = {name: [systems[i] for i in sorted(which)] for name, which in held.items()}
    train = [s for s in titanium(sites=4) if s not in out["test"] + out["val"]]
    return out | {"train": train, "other_metals": other_metals()}


def start_of(frame: Atoms) -> Atoms:
    """A frame without calculator, with rounded coordinates."""
    out = frame.copy()
    out.positions = out.positions.round(6)
    return out


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


def pack(work: Path, out: Path) -> None:
    """Write a folder for each split, ``train_frames``, ``val_frames`` and the statistics.

    ``train_frames`` are of the titanium training systems and of the other metals.
    """
    statistics: dict[str, object] = {
        "made_with": {p: version(p) for p in ("sevenn", "torch", "ase", "numpy")}
    }
    frames: dict[str, list[tuple[Atoms, dict[str, object]]]] = {"train": [], "val": []}
    for split, systems in splits().items():
        rows, measures, left_out = [], [], []
        anomalies: dict[str, list[str]] = {}
        for system in systems:
            file = work / f"{system.name}.traj"
            if not file.exists():
                raise SystemExit(
                    f"{file} is missing; make it with: generate.py relax --work {work}"
                )
            trajectory = read(file, ":")
            first, last = trajectory[0], trajectory[-1]
            if np.linalg.norm(last.get_forces(), axis=1).max() > FMAX:
                left_out.append(system.name)
                continue
            start, found = start_of(first), anomaly(first, last)
            if found:
                anomalies.setdefault(found, []).append(system.name)
            data = {
                "sid": system.name,
                "pos_relaxed": last.positions.round(6),
                "anomaly": found,
                "energy_relaxed": round(float(last.get_potential_energy()), 5),
            }
            rows.append((start, data))
            if split != "test":
                kept = evenly_in_force(trajectory, FRAMES)
                to = "val" if split == "val" else "train"
                frames[to] += [
                    (labelled(trajectory[i]), {"sid": f"{system.name}_{i}"}) for i in kept
                ]
            step = find_mic(last.positions - first.positions, first.cell)[0]
            measures.append(
                {
                    "delta_q": float(np.sqrt((first.get_masses()[:, None] * step**2).sum())),
                    "max_displacement": float(np.linalg.norm(step, axis=1).max()),
                    "steps": len(trajectory) - 1,
                }
            )
        write(out / split, rows)
        statistics[split] = {
            "structures": len(rows),
            "anomalies": anomalies,
            "not_converged": left_out,
            **{key: summary([m[key] for m in measures]) for key in measures[0]},
        }
    explored = sorted((work / "explored").glob("*.traj"))
    frames["train"] += [
        (labelled(frame), {"sid": f"{file.stem}_{i}"})
        for file in explored
        for i, frame in enumerate(read(file, ":"))
    ]
    statistics["explored"] = {"relaxations": len(explored)}
    for split, pairs in frames.items():
        write(out / f"{split}_frames", pairs)
        statistics[f"{split}_frames"] = len(pairs)
    (out / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax", "pack"))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of trajectories")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the packed files")
    arguments = parser.parse_args()
    if arguments.action == "pack":
        pack(arguments.work, arguments.out)
        return
    systems = [system for split in splits().values() for system in split]
    starts = [(system.name, partial(build, system)) for system in systems]
    relax_all(starts, arguments.work, arguments.workers, FMAX, MAX_STEPS)


if __name__ == "__main__":
    main()
