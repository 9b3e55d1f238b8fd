"""Silicon defects of 14 to 17 atoms, relaxed by density-functional theory (Quantum ESPRESSO, PBE).

    apt install quantum-espresso quantum-espresso-data libopenblas0-serial
    python data/si/dft.py relax --workers 2    # goes on where it was; keeps dft/relaxed/*.npz
    python data/si/dft.py check vac_0 --grid 4 # the forces at its end with 4 x 4 x 4 k
    python data/si/dft.py pack                 # dft/test and dft/test_frames

``pw.x`` stays open for a relaxation, and the L-BFGS of this project asks it over a socket. The
pseudopotential comes with the examples of the second package.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.calculators.singlepoint import SinglePointCalculator
from ase.calculators.socketio import SocketIOCalculator
from defects import LATTICE, Defect, build, distort
from generate import FMAX, file_of, moved, pack
from plan import Job
from torch import Tensor

import fairchem_gdeq as gdeq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import packing  # noqa: E402
import records  # noqa: E402
from relaxing import Start, make_all, without_drift  # noqa: E402

OUT = HERE / "dft"
PSEUDOPOTENTIAL = Path(
    "/usr/share/doc/quantum-espresso/examples/XSpectra/pseudo/Si_PBE_USPP.UPF.gz"
)
KINDS = ("vac", "divac1", "int_T", "int_H", "int_BC", "int_split110", "int_split100")
VARIANTS = 3  # distortions of each
FRAMES = 16  # kept of each relaxation, at most
MAX_STEPS = 100
GRID, CUTOFF = 2, 18.5  # of k in each direction; Ry, and the pseudopotential's file suggests 18.4


class Program(EspressoProfile):
    """``pw.x``, which ASE leaves out of the command that it runs over a socket."""

    def get_calculator_command(self, inputfile: str) -> list[str]:
        return [*self._split_command, *super().get_calculator_command(inputfile)]


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


def calculator(
    settings: Settings, folder: Path, grid: int = GRID, cutoff: float = CUTOFF
) -> Espresso:
    """Of fixed cells, without spin, on a shifted grid of k with as many in each direction."""
    packed = settings.pseudopotential
    name = packed.name.removesuffix(".gz")
    opened = gzip.open if packed.suffix == ".gz" else open
    folder.mkdir(parents=True, exist_ok=True)
    with opened(packed, "rb") as stream:
        (folder / name).write_bytes(stream.read())
    return Espresso(
        profile=Program(settings.program, folder.absolute()),
        directory=folder.absolute(),
        input_data={
            "control": {"tprnfor": True, "disk_io": "low", "outdir": "./out"},
            "system": {
                "ecutwfc": cutoff,
                "ecutrho": max(150.0, 8 * cutoff),
                "occupations": "smearing",
                "smearing": "gaussian",
                "degauss": 0.005,
                "nosym": True,
            },
            "electrons": {"conv_thr": 1e-7, "mixing_beta": 0.5},
        },
        pseudopotentials={"Si": name},
        kpts=(grid,) * 3,
        koffset=(1, 1, 1),
    )


def path_of(start: Atoms, asked: Calculator) -> list[Atoms]:
    """Every structure that the relaxation asks for, with its labels; the last one is the end.

    Raises:
        RuntimeError: it did not converge, or the calculator failed; says why.
    """
    trajectory: list[Atoms] = []

    def forces(positions: Tensor) -> Tensor:
        atoms = start.copy()
        atoms.positions = positions.numpy()
        found = {"energy": asked.get_potential_energy(atoms), "forces": asked.get_forces(atoms)}
        atoms.calc = SinglePointCalculator(atoms, **found)
        trajectory.append(atoms)
        return torch.as_tensor(found["forces"])

    field = gdeq.from_callable(forces)
    settings = {"solver": gdeq.LBFGS(), "horizon": 0, "progress": False}
    ended = gdeq.relax(start, field, fmax=FMAX, max_steps=MAX_STEPS, **settings)
    if ended.reasons[0]:
        raise RuntimeError(f"{ended.codes[0].value}: {ended.reasons[0]}")
    return trajectory


@contextmanager
def running(asked: Espresso) -> Iterator[Calculator]:
    """The program, open for any number of structures.

    Raises:
        RuntimeError: something failed; says where the program's output is.
    """
    folder = Path(asked.directory)
    os.chdir(folder)  # where ASE leaves what the program prints
    try:
        with SocketIOCalculator(asked, unixsocket=f"{folder.name}_{os.getpid()}") as program:
            yield program
    except Exception as error:
        raise RuntimeError(f"{error} (see {folder})") from error


def relax_one(start: Start, settings: Settings) -> None:
    """Make the record of one start.

    Raises:
        RuntimeError: it failed; says where the program's output is.
    """
    with running(calculator(settings, settings.work / start.file.stem)) as program:
        trajectory = path_of(start.build(), program)
    records.save(start.file, without_drift(trajectory), start.frames)


def force_at(end: Atoms, asked: Espresso) -> float:
    """Largest force on an atom of a relaxed structure, eV/Angstrom."""
    with running(asked) as program:
        return float(np.linalg.norm(program.get_forces(end.copy()), axis=1).max())


def check(names: list[str], grid: int, cutoff: float, relaxed: Path, settings: Settings) -> None:
    """Print the largest force at the ends of relaxations, then and with another theory.

    Raises:
        RuntimeError: as ``running``.
        ValueError: a name has no complete record.
    """
    for name in names:
        record = records.load(relaxed / f"{name}.npz")
        folder = settings.work / f"{name}_{grid}_{cutoff:g}"
        now = force_at(record.frames[-1], calculator(settings, folder, grid, cutoff))
        print(f"{name}: {record.max_forces[-1]:.3f} eV/Angstrom, now {now:.3f}", flush=True)


def relax(workers: int, relaxed: Path, settings: Settings) -> None:
    """Relax what has no record in the folder (absolute) yet, as ``make_all``, with what it raises."""
    starts = [Start(file_of(job, relaxed), partial(start_of, job), job.frames) for job in jobs()]
    make_all(starts, partial(relax_one, settings=settings), workers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    made = actions.add_parser("relax", help="what has no record yet")
    made.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    checked = actions.add_parser("check", help="forces at ends with another theory")
    checked.add_argument("names", nargs="+", help="of records, such as vac_0")
    checked.add_argument("--grid", type=int, default=GRID, help="k in each direction")
    checked.add_argument("--cutoff", type=float, default=CUTOFF, help="Ry")
    packed = actions.add_parser("pack", help="what data sets are made of")
    packed.add_argument("--out", type=Path, default=OUT, help="folder of the packed files")
    for action in (made, checked):
        action.add_argument("--program", default="pw.x")
        action.add_argument("--pseudopotential", type=Path, default=PSEUDOPOTENTIAL)
    for action in (made, checked, packed):
        action.add_argument("--relaxed", type=Path, default=OUT / "relaxed", help="the records")
    arguments = parser.parse_args()
    relaxed = arguments.relaxed.absolute()  # the program changes the working folder
    if arguments.action == "pack":
        one = partial(pack, jobs=jobs(), relaxed=relaxed, out=arguments.out)
        packing.each(["test"], one)
        return
    settings = Settings(arguments.program, arguments.pseudopotential, HERE / "work")
    if arguments.action == "check":
        check(arguments.names, arguments.grid, arguments.cutoff, relaxed, settings)
        return
    relax(arguments.workers, relaxed, settings)


if __name__ == "__main__":
    main()
