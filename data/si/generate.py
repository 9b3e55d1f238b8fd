"""Make the silicon point-defect IS2RS set: relax starts on SevenNet-0, then pack them to ASE-LMDB.

    python data/si/generate.py relax --workers 2     # goes on where it was; keeps relaxed/*.npz
    python data/si/generate.py pack                  # LMDBs of these; splits that are complete
    python data/si/generate.py large                 # starts of 216 and 648 atoms, in seconds

Both leave alone what is packed already, unless it is named with ``--splits``. ``--reference chgnet``
relaxes the same starts on CHGNet, into ``chgnet``.

Needs the ``data`` extra of the project (``sevenn``), or ``chgnet``: these packages ship the weights.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from defects import LATTICE, Defect, build, distort, host
from plan import Job, plan

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import packing  # noqa: E402
from ase_lmdb import write  # noqa: E402
from references import REFERENCES  # noqa: E402
from relaxing import Start  # noqa: E402
from sevennet import relax_all  # noqa: E402

FMAX = 0.01  # eV/Angstrom
MAX_STEPS = 400
# The crystal's planes lie at multiples of a/4 with one at the cell face, where rattled atoms would
# be wrapped to the far side. All structures are moved by a/8, so that nothing is wrapped and
# absolute coordinates mean the same everywhere.
SHIFT = LATTICE / 8


def start_of(job: Job) -> Atoms:
    """The unrelaxed structure of a job."""
    return moved(distort(*build(job.defect), job.sid))


def moved(atoms: Atoms) -> Atoms:
    """The structure moved by ``SHIFT``."""
    atoms.positions += SHIFT
    return atoms


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
        atoms = moved(distort(*build(defect, host(repeat)), name))
        atoms.positions = atoms.positions.round(6)
        rows.append((atoms, {"sid": name, "defect": defect.name}))
    write(out / "large", rows)


def file_of(job: Job, relaxed: Path) -> Path:
    """Where the job's record lies."""
    return relaxed / f"{job.sid}.npz"


def relax(jobs: list[Job], relaxed: Path, workers: int, reference: str) -> None:
    """Make the records that are missing, in the order of the jobs."""
    starts = [Start(file_of(job, relaxed), partial(start_of, job), job.frames) for job in jobs]
    relax_all(starts, workers, FMAX, MAX_STEPS, REFERENCES[reference])


def pack(split: str, jobs: list[Job], relaxed: Path, out: Path) -> None:
    """Write ``<split>/`` (starts and targets), ``<split>_frames/`` and the split's statistics.

    Raises:
        Incomplete: some of its relaxations are not there; nothing was written.
    """
    members = {job.sid: job for job in jobs if job.split == split}
    found = packing.read_split(split, {sid: file_of(job, relaxed) for sid, job in members.items()})
    kept = {sid: record for sid, record in found.items() if record.max_forces[-1] <= FMAX}
    rows: list[tuple[Atoms, dict[str, object]]] = []
    for sid, record in kept.items():
        start, end = packing.start_of(record), record.frames[-1]
        data = {
            "sid": sid,
            "pos_relaxed": end.positions,
            "masses": start.get_masses(),
            "free": np.ones(len(start), dtype=bool),
            "defect": members[sid].defect.name,
            "energy_relaxed": float(end.get_potential_energy()),
        }
        rows.append((start, data))
    frames = packing.frames_of({sid: kept[sid] for sid in kept if members[sid].frames})
    write(out / split, rows)
    if frames:
        write(out / f"{split}_frames", frames)
    statistics = {
        "structures": len(rows),
        "frames": len(frames),
        "not_converged": [sid for sid in found if sid not in kept],
    }
    packing.add_statistics(out, split, statistics | packing.measured(kept.values()))


def main() -> None:
    jobs = plan()
    splits = list(dict.fromkeys(job.split for job in jobs))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax", "pack", "large"))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--reference", choices=REFERENCES, default="sevennet")
    parser.add_argument("--relaxed", type=Path, help="folder of records")
    parser.add_argument("--out", type=Path, help="folder of the packed files")
    parser.add_argument("--splits", nargs="+", choices=splits, help="default: not packed yet")
    arguments = parser.parse_args()
    own = HERE if arguments.reference == "sevennet" else HERE / arguments.reference
    out = arguments.out or own
    relaxed = arguments.relaxed or own / "relaxed"
    if arguments.action == "large":
        pack_large(out)
        return
    chosen = arguments.splits or [s for s in splits if not packing.packed(out, s)]
    if arguments.action == "relax":
        todo = [job for job in jobs if job.split in chosen]
        relax(todo, relaxed, arguments.workers, arguments.reference)
        return
    packing.each(chosen, partial(pack, jobs=jobs, relaxed=relaxed, out=out))


if __name__ == "__main__":
    main()
