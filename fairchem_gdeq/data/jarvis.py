"""JARVIS-DFT relaxations as labelled frames, for RelaxNet.

    python -m fairchem_gdeq.data.jarvis data/jarvis                   # of figshare's alignn_ff_db
    python -m fairchem_gdeq.data.jarvis data/jarvis --vasprun FOLDER  # of vasprun.xml files

Either way ``OUT/train_frames``, ``val_frames`` and ``test_frames`` are written, whose rows are called
``NAME_STEP``. A material is in one split only. JARVIS relaxes the cell too, and RelaxNet has none to
relax: frames are brought into the cell of the first one at the same fractional coordinates, with energies
and forces as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from fairchem_gdeq.data.reading import listed
from fairchem_gdeq.data.rows import BadRow
from fairchem_gdeq.extras import require

DATASET = "alignn_ff_db"  # its figshare name in jarvis-tools
SPLITS = {"train": 0.9, "val": 0.05, "test": 0.05}  # the paper's
JID = re.compile(r"JVASP-\d+")
SAME = 1e-6  # Angstrom: frames that are nearer are one
STRAIN = 1e-3  # Angstrom: changes of a cell above that are counted

Trajectory = tuple[str, list[Atoms]]


def entries_of(store: Path) -> list[Mapping[str, Any]]:
    """The entries of the figshare data set, which has to lie in ``store``: nothing is fetched.

    Raises:
        FileNotFoundError: says what to fetch, and from where.
        ImportError: jarvis-tools is not installed; names the extra.
    """
    figshare = require("jarvis.db.figshare", "jarvis-tools", "relaxnet")
    url, name = figshare.get_db_info()[DATASET][:2]
    file = store / f"{name}.zip"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file. It is the data set {DATASET} of JARVIS-DFT on figshare. Where "
            f'there is a network, fetch it with: python -c "from jarvis.db.figshare import data; '
            f"data('{DATASET}', store_dir='{store}')\", or save {url} under that name. Or name a "
            "folder of vasprun.xml files with --vasprun FOLDER"
        )
    entries: list[Mapping[str, Any]] = figshare.data(DATASET, store_dir=str(store))
    return entries


def of_entries(entries: Iterable[Mapping[str, Any]]) -> Iterator[Trajectory]:
    """Relaxations of the figshare data set: its entries of a material, in their order.

    By the description in jarvis-tools, ``total_energy`` is that of an atom (eV), and forces are in
    eV/Angstrom. The set has a few frames of each relaxation: for a smooth one the first, the last and one
    between.
    """
    convert = require("jarvis.core.atoms", "jarvis-tools", "relaxnet").Atoms.from_dict
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        named = JID.match(str(entry["jid"]))
        found[named[0] if named else str(entry["jid"])].append(entry)
    for name, each in found.items():
        frames = []
        for entry in each:
            atoms: Atoms = convert(entry["atoms"]).ase_converter()
            label(atoms, float(entry["total_energy"]) * len(atoms), entry["forces"])
            frames.append(atoms)
        yield name, frames


def of_vaspruns(folder: Path) -> Iterator[Trajectory]:
    """Relaxations of the ``vasprun.xml`` files in a folder, each called after its path.

    A file that cannot be read is named in the log, and left out.

    Raises:
        FileNotFoundError: there are none.
    """
    read = require("jarvis.io.vasp.outputs", "jarvis-tools", "relaxnet").Vasprun
    files = sorted(folder.glob("**/*vasprun*.xml"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: expected vasprun.xml files in it, as the zip files of the figshare project "
            "JARVIS-DFT SCF Optimization (jarvis-tools calls their list raw_files) hold one each"
        )
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
        try:
            run = read(str(file))
            steps = zip(run.all_structures, run.all_energies, run.all_forces, strict=True)
            frames = []
            for structure, energy, forces in steps:
                atoms: Atoms = structure.ase_converter()
                label(atoms, float(energy), forces)
                frames.append(atoms)
        except Exception as error:  # whatever xml parsers and jarvis-tools raise on damaged files
            logging.warning(
                f"{file}: left out, it cannot be read ({type(error).__name__}: {error})"
            )
            continue
        yield name, frames


def label(atoms: Atoms, energy: float, forces: Any) -> None:
    """Give a frame its energy (eV) and forces [n, 3] (eV/Angstrom)."""
    atoms.calc = SinglePointCalculator(
        atoms, energy=energy, forces=np.asarray(forces, dtype=float).reshape(-1, 3)
    )


def in_one_cell(frames: list[Atoms]) -> tuple[list[Atoms], float]:
    """Frames in the cell of the first, without repeats; and by how much cells changed, Angstrom.

    Raises:
        BadRow: frames of other atoms.
    """
    first, kept = frames[0], list[Atoms]()
    for step, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, first.numbers):
            raise BadRow(f"frame {step}", "it has other atoms than the first one")
        moved = Atoms(frame.numbers, cell=first.cell, pbc=True)
        moved.set_scaled_positions(frame.get_scaled_positions(wrap=False))
        label(moved, frame.get_potential_energy(), frame.get_forces())
        if not kept or np.abs(moved.positions - kept[-1].positions).max() > SAME:
            kept.append(moved)
    return kept, max(float(np.abs(f.cell.array - first.cell.array).max()) for f in frames)


def split_of(name: str) -> str:
    """The split of a material: the same on any machine, and whatever others there are."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    for split, share in SPLITS.items():
        place -= share
        if place < 0:
            return split
    return next(iter(SPLITS))


def write(trajectories: Iterable[Trajectory], out: Path) -> dict[str, int]:
    """Write the three folders of frames; number of relaxations in each.

    Relaxations of one frame, or of other atoms in the middle, are named in the log and left out.

    Raises:
        FileExistsError: one of the folders is there already.
        ValueError: there is nothing to write.
    """
    folders = {split: out / f"{split}_frames" for split in SPLITS}
    if there := [folder for folder in folders.values() if folder.exists()]:
        raise FileExistsError(f"{there[0]} is there already: remove it, or choose another folder")
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    bad: list[BadRow] = []
    sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
    strained = 0
    for folder in folders.values():
        folder.mkdir(parents=True)
    with ExitStack() as stack:
        databases = {
            split: stack.enter_context(connect(folder / "data.aselmdb", type="aselmdb"))
            for split, folder in folders.items()
        }
        for name, frames in trajectories:
            try:
                kept, strain = in_one_cell(frames)
            except BadRow as error:
                bad.append(BadRow(f"{name}, {error.where}", error.reason))
                continue
            if len(kept) < 2:
                bad.append(BadRow(name, "one frame only"))
                continue
            split = split_of(name)
            counts[split] += 1
            strained += strain > STRAIN
            for step, frame in enumerate(kept):
                databases[split].write(frame, data={"sid": f"{name}_{step}"})
                sizes[split].append(len(frame))
    for split, folder in folders.items():
        np.savez(folder / "metadata.npz", natoms=np.array(sizes[split]))
    if bad:
        logging.warning(f"{len(bad)} relaxations are left out:\n{listed(bad)}")
    if not sum(counts.values()):
        raise ValueError(f"{out}: no relaxation with at least two frames to write")
    logging.info(f"in {strained} of {sum(counts.values())} relaxations the cell changes")
    return counts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fairchem_gdeq.data.jarvis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder of the data set, which is made")
    parser.add_argument("--store", type=Path, help="where the fetched file lies; default: OUT")
    parser.add_argument("--vasprun", type=Path, help="folder of vasprun.xml files instead")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if given.vasprun is not None:
            trajectories = of_vaspruns(given.vasprun)
        else:
            trajectories = of_entries(entries_of(given.store or given.out))
        counts = write(trajectories, given.out)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(", ".join(f"{split}_frames: {count} relaxations" for split, count in counts.items()))


if __name__ == "__main__":
    main()
