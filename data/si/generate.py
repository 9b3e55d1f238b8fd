"""Make the silicon point-defect IS2RS set: relax starts on SevenNet-0, then pack them to ASE-LMDB.

    python data/si/generate.py relax --workers 2     # resumable: finished relaxations are kept
    python data/si/generate.py large                 # starts of 216 and 648 atoms, in seconds
    python data/si/generate.py pack                  # writes train/ ... test/ and statistics.json here

Needs the ``data`` extra of the project (the ``sevenn`` package, which ships the weights).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.io import read
from defects import LATTICE, Defect, build, catalogue, distort
from tqdm import tqdm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from ase_lmdb import evenly_in_force, summary, write  # noqa: E402
from sevennet import relax_all  # noqa: E402

SPLITS = {"train": 190, "val": 30, "test": 80}
SINGLE_DISTORTION = {"sub+sub1": 31, "sub+int_T": 31, "sub+int_BC": 30}  # pairs drawn of each kind
MORE_PAIRS = {"sub+sub1": 28, "sub+int_T": 50, "sub+int_BC": 50}  # training starts without frames
FMAX = 0.01  # eV/Angstrom
MAX_STEPS = 400
FRAMES = 16  # kept of each training relaxation
SEED = 2026
# The crystal's planes lie at multiples of a/4 with one at the cell face, where rattled atoms would
# be wrapped to the far side. Stored structures are moved by a/8, so that nothing is wrapped and
# absolute coordinates mean the same everywhere.
SHIFT = LATTICE / 8


@dataclass(frozen=True)
class Job:
    """One relaxation: a defect with one distortion, in one split."""

    split: str
    defect: Defect
    variant: int
    keep_frames: bool = True

    @property
    def sid(self) -> str:
        return f"{self.defect.name}_{self.variant}"


def plan() -> list[Job]:
    """All relaxations, training first. No defect (species and site) is in two splits."""
    rng = np.random.default_rng(SEED)
    groups: list[list[tuple[Defect, int]]] = []
    by_kind: dict[str, list[Defect]] = {}
    for defect in catalogue():
        by_kind.setdefault(defect.kind, []).append(defect)
    for kind, defects in by_kind.items():
        if kind in SINGLE_DISTORTION:
            chosen = rng.choice(len(defects), SINGLE_DISTORTION[kind], replace=False)
            groups += [[(defects[i], 0)] for i in chosen]
        else:
            groups += [[(defect, 0), (defect, 1)] for defect in defects]
    rng.shuffle(groups)  # type: ignore[arg-type]
    jobs: list[Job] = []
    names = iter(SPLITS)
    split = next(names)
    for group in groups:
        if sum(job.split == split for job in jobs) >= SPLITS[split]:
            split = next(names, split)
        jobs += [Job(split, defect, variant, split != "test") for defect, variant in group]
    return jobs + more_training(jobs, by_kind)


def more_training(jobs: list[Job], by_kind: dict[str, list[Defect]]) -> list[Job]:
    """Starts and targets for fine-tuning only, of pairs that no split has.

    The base potentials do not see them, so their frames are not kept.
    """
    rng = np.random.default_rng(SEED + 1)
    used = {job.defect for job in jobs}
    more = []
    for kind, count in MORE_PAIRS.items():
        unused = [defect for defect in by_kind[kind] if defect not in used]
        chosen = rng.choice(len(unused), count, replace=False)
        more += [Job("train", unused[i], 0, keep_frames=False) for i in chosen]
    return more


def start_of(job: Job) -> Atoms:
    """The unrelaxed structure of a job."""
    atoms, origin = build(job.defect)
    return distort(atoms, origin, job.sid)


def shifted(atoms: Atoms, decimals: int = 6) -> Atoms:
    """The structure moved by ``SHIFT`` with rounded coordinates and without its calculator."""
    return Atoms(
        atoms.symbols,
        positions=(atoms.positions + SHIFT).round(decimals),
        cell=atoms.cell,
        pbc=True,
    )


def without_drift(trajectory: list[Atoms]) -> list[Atoms]:
    """The same frames with the centroid where it was at the start.

    Forces sum to zero only to single precision, and in a long relaxation BFGS can take that for a
    soft mode: one crystal of the set slid by several Angstrom as a rigid body.
    """
    first = trajectory[0].positions.copy()
    for atoms in trajectory:
        forces, energy = atoms.get_forces(), atoms.get_potential_energy()
        atoms.positions -= (atoms.positions - first).mean(0)
        atoms.calc = SinglePointCalculator(atoms, forces=forces, energy=energy)
    return trajectory


def pack_frame(atoms: Atoms) -> Atoms:
    """A frame with its labels, rounded (1e-5 Angstrom, 1e-3 eV/Angstrom) to keep files small."""
    out = shifted(atoms, decimals=5)
    out.calc = SinglePointCalculator(
        out,
        energy=round(float(atoms.get_potential_energy()), 5),
        forces=atoms.get_forces().round(3),
    )
    return out


LARGE = {  # name: (defect, cells of the host); for memory and speed, so without targets
    "vac_216": (Defect("vac"), (3, 3, 3)),
    "sub+vac1-P_216": (Defect("sub+vac1", ("P",)), (3, 3, 3)),
    "int_split110-Si_216": (Defect("int_split110", ("Si",)), (3, 3, 3)),
    "sub+int_BC-C-O_216": (Defect("sub+int_BC", ("C", "O")), (3, 3, 3)),
    "divac1_648": (Defect("divac1"), (3, 3, 9)),
}


def pack_large(out: Path) -> None:
    """Write ``large/``: start structures of 216 and 648 host atoms."""
    rows: list[tuple[Atoms, dict[str, object]]] = []
    for name, (defect, repeat) in LARGE.items():
        atoms, origin = build(defect, repeat)
        rows.append((shifted(distort(atoms, origin, name)), {"sid": name, "defect": defect.name}))
    write(out / "large", rows)


def pack(jobs: list[Job], work: Path, out: Path, splits: list[str]) -> None:
    """Write ``<split>/`` (starts and targets), ``<split>_frames/`` and the statistics."""
    file = out / "statistics.json"
    statistics = json.loads(file.read_text()) if file.exists() else {}
    statistics["made_with"] = {p: version(p) for p in ("sevenn", "torch", "ase", "numpy")}
    for split in splits:
        todo = [job for job in jobs if job.split == split]
        missing = [job.sid for job in todo if not (work / f"{job.sid}.traj").exists()]
        if missing:
            raise SystemExit(
                f"{split}: {len(missing)} of {len(todo)} relaxations are missing in {work} "
                f"({missing[0]}, ...); make them with: generate.py relax --work {work}"
            )
        starts, frames, measures, dropped = [], [], [], []
        for job in tqdm(todo, desc=f"pack {split}"):
            trajectory = without_drift(read(work / f"{job.sid}.traj", ":"))
            first, last = trajectory[0], trajectory[-1]
            if np.linalg.norm(last.get_forces(), axis=1).max() > FMAX:
                dropped.append(job.sid)
                continue
            start = shifted(first)
            data = {
                "sid": job.sid,
                "pos_relaxed": shifted(last).positions,
                "masses": start.get_masses(),
                "free": np.ones(len(start), dtype=bool),
                "defect": job.defect.name,
                "energy_relaxed": round(float(last.get_potential_energy()), 5),
            }
            starts.append((start, data))
            if job.keep_frames:
                frames += [
                    (pack_frame(trajectory[i]), {"sid": f"{job.sid}_{i}"})
                    for i in evenly_in_force(trajectory, FRAMES)
                ]
            step = find_mic(last.positions - first.positions, first.cell)[0]
            masses = start.get_masses()[:, None]
            step -= (masses * step).sum(0) / masses.sum()
            measures.append(
                {
                    "delta_q": float(np.sqrt((masses * step**2).sum())),
                    "max_displacement": float(np.linalg.norm(step, axis=1).max()),
                    "steps": len(trajectory) - 1,
                    "max_force_at_start": float(np.linalg.norm(first.get_forces(), axis=1).max()),
                }
            )
        write(out / split, starts)
        if frames:
            write(out / f"{split}_frames", frames)
        statistics[split] = {
            "structures": len(starts),
            "frames": len(frames),
            "not_converged": dropped,
            **{key: summary([m[key] for m in measures]) for key in measures[0]},
        }
    file.write_text(json.dumps(statistics, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax", "pack", "large"))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of trajectories")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the packed files")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="to pack")
    arguments = parser.parse_args()
    jobs = plan()
    if arguments.action == "large":
        pack_large(arguments.out)
        return
    if arguments.action == "pack":
        pack(jobs, arguments.work, arguments.out, arguments.splits)
        return
    starts = [(job.sid, partial(start_of, job)) for job in jobs]
    relax_all(starts, arguments.work, arguments.workers, FMAX, MAX_STEPS)


if __name__ == "__main__":
    main()
