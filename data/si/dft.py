"""Silicon defects of 15 to 17 atoms, relaxed by density-functional theory (Quantum ESPRESSO, PBE).

    apt install quantum-espresso quantum-espresso-data
    python data/si/dft.py relax --workers 2    # goes on where it was; keeps dft/relaxed/*.npz
    python data/si/dft.py pack                 # dft/test and dft/test_frames

The pseudopotential is one of those that come with the examples of the second package.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.io.espresso import write_espresso_in
from ase.units import Bohr, Ry
from defects import LATTICE, Defect, build, distort
from generate import moved, pack
from plan import Job

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import records  # noqa: E402
from sevennet import over, without_drift  # noqa: E402

OUT = HERE / "dft"
PSEUDOPOTENTIAL = Path(
    "/usr/share/doc/quantum-espresso/examples/XSpectra/pseudo/Si_PBE_USPP.UPF.gz"
)
KINDS = ("vac", "divac1", "int_T", "int_H", "int_BC", "int_split110", "int_split100")
VARIANTS = 3  # distortions of each
FRAMES = 16  # kept of each relaxation, at most
# Of a force's components, eV/Angstrom, so that no force is larger than FMAX.
COMPONENT = 0.01
FMAX = 0.02


@dataclass(frozen=True)
class Settings:
    """Where a calculation happens, and with what.

    Attributes:
        program: ``pw.x``.
        pseudopotential: of silicon, a .UPF or .UPF.gz file.
        work: the folder of its files.
    """

    program: str
    pseudopotential: Path
    work: Path


def jobs() -> list[Job]:
    """What is relaxed: every kind with its first distortion, then with its second."""
    return [
        Job("test", Defect(kind, ("Si",) if kind.startswith("int_") else ()), variant, FRAMES)
        for variant in range(VARIANTS)
        for kind in KINDS
    ]


def start_of(job: Job) -> Atoms:
    """The unrelaxed structure, in a cell of 2 x 2 x 2 primitive ones: images are 7.7 Angstrom away."""
    crystal = bulk("Si", "diamond", a=LATTICE) * (2, 2, 2)
    return moved(distort(*build(job.defect, crystal), f"{job.sid}_16"))


def write_input(atoms: Atoms, file: Path, pseudopotential: str) -> None:
    """That of a relaxation by ``pw.x``: fixed cell, no spin, ten points of the primitive cell's zone."""
    sections = {
        "control": {
            "calculation": "relax",
            "pseudo_dir": ".",
            "outdir": "./out",
            "disk_io": "low",
            "forc_conv_thr": COMPONENT * Bohr / Ry,
            "etot_conv_thr": 1e-3,
            "nstep": 100,
        },
        "system": {
            "ecutwfc": 18.5,  # Ry; the pseudopotential's file suggests 18.4
            "ecutrho": 150.0,
            "occupations": "smearing",
            "smearing": "gaussian",
            "degauss": 0.005,
            "nosym": True,
        },
        "electrons": {"conv_thr": 1e-7, "mixing_beta": 0.5},
        "ions": {},
    }
    with file.open("w") as stream:
        write_espresso_in(
            stream,
            atoms,
            sections,
            pseudopotentials={"Si": pseudopotential},
            kpts=(2, 2, 2),
            koffset=(1, 1, 1),
        )


def relax_one(job: Job, relaxed: Path, settings: Settings) -> str | None:
    """Make the record of one job; if that fails, say how, so that others go on."""
    folder = settings.work / job.sid
    folder.mkdir(parents=True, exist_ok=True)
    packed = settings.pseudopotential
    name = packed.name.removesuffix(".gz")
    opened = gzip.open if packed.suffix == ".gz" else open
    with opened(packed, "rb") as stream:
        (folder / name).write_bytes(stream.read())
    start = start_of(job)
    write_input(start, folder / "pw.in", name)
    with (folder / "pw.out").open("w") as out:
        command = [settings.program, "-in", "pw.in"]
        ended = subprocess.run(command, check=False, cwd=folder, stdout=out, stderr=out)
    said = (folder / "pw.out").read_text()
    if ended.returncode or "End of BFGS Geometry Optimization" not in said:
        return f"{job.sid}: {settings.program} did not end a relaxation, see {folder / 'pw.out'}"
    trajectory = read(folder / "pw.out", index=":", format="espresso-out")
    records.save(relaxed / f"{job.sid}.npz", without_drift(trajectory), FRAMES)
    return None


def relax(workers: int, relaxed: Path, settings: Settings) -> None:
    """Relax what has no record yet.

    Raises:
        SystemExit: some failed; all others were done.
    """
    relaxed.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs() if not records.finished(relaxed / f"{job.sid}.npz")]
    one = partial(relax_one, relaxed=relaxed, settings=settings)
    failed = [message for message in over(one, todo, workers, "relax") if message]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(todo)} relaxations failed:\n" + "\n".join(failed))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax", "pack"))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--relaxed", type=Path, default=OUT / "relaxed", help="folder of records")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the packed files")
    parser.add_argument("--program", default="pw.x")
    parser.add_argument("--pseudopotential", type=Path, default=PSEUDOPOTENTIAL)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.action == "pack":
        pack("test", jobs(), arguments.relaxed, arguments.out, FMAX)
        return
    settings = Settings(arguments.program, arguments.pseudopotential, HERE / "work")
    relax(arguments.workers, arguments.relaxed, settings)


if __name__ == "__main__":
    main()
