"""Structures to relax, each with a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from tqdm import tqdm

from fairchem_gdeq.data.reading import BadRows, Source, read_row, repeated_names
from fairchem_gdeq.data.rows import BadRow, free_atoms, masses
from fairchem_gdeq.data.sources import DATABASES, open_source
from fairchem_gdeq.data.trajectories import KEPT

# Of a structure's arrays, those that still hold when its atoms move.
ARRAYS = {"numbers", "positions", "tags", "masses", "initial_magmoms", "initial_charges"}
ADVICE = "Mend them, or run again with --skip-bad to leave them out."


@dataclass(frozen=True)
class Start:
    """A start, and its relaxed structure where that is known.

    Attributes:
        name: which no other start has; frames are called ``<name>_step<number>``.
        atoms: the structure, with fixed atoms as a ``FixAtoms`` and nothing of its origin's data.
        target: the same atoms at their relaxed positions.
    """

    name: str
    atoms: Atoms
    target: Atoms | None = None


def read_frames(path: Path) -> list[Atoms]:
    """All structures of a file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: ASE cannot read it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (working folder {Path.cwd()})")
    try:
        found = ase.io.read(path, ":")
    except Exception as error:  # whatever ASE's readers raise
        raise ValueError(
            f"{path}: ASE cannot read it ({type(error).__name__}: {error}). Expected structures in one "
            "of its formats"
        ) from error
    return found if isinstance(found, list) else [found]


class FramesSource:
    """Every frame of one file that ASE reads, without targets; sid is its number where it has none."""

    def __init__(self, path: Path) -> None:
        """Read all of it.

        Raises:
            ValueError: ASE cannot read it, or there is nothing in it.
        """
        self.path = path
        self.target_key: str | None = None
        self._frames = read_frames(path)
        if not self._frames:
            raise ValueError(f"{path}: no structures in it")

    def __len__(self) -> int:
        return len(self._frames)

    def where(self, index: int) -> str:
        """File and number of the frame, from 0."""
        return f"{self.path}, frame {index}"

    def read(self, index: int) -> Atoms:
        """The frame, without its calculator."""
        atoms: Atoms = self._frames[index].copy()
        sid = atoms.info.setdefault("sid", f"{self.path.stem}-{index}")
        if isinstance(sid, bool | float | np.bool_):  # ASE's reader makes these of words
            atoms.info["sid"] = str(sid)
        return atoms


def open_starts(
    path: str | Path, target_key: str | None = None, skip_bad: bool = False
) -> tuple[list[Start], list[BadRow]]:
    """The starts of a data set or a file, checked, and the rows that are left out.

    Args:
        path: what ``open_source`` opens, or any other file that ASE reads, each frame of it a start.
        target_key: of the relaxed positions; None: they are not needed.
        skip_bad: leave bad rows out.

    Raises:
        FileNotFoundError: nothing there.
        BadRows: bad rows, and ``skip_bad`` is not set; or nothing else.
        ValueError: ASE cannot read it; or targets are asked of a file that cannot have any.
    """
    source = _open(Path(path), target_key)
    good: list[Atoms] = []
    bad: list[BadRow] = []
    for index in tqdm(range(len(source)), desc=f"read {path}", leave=False):
        try:
            atoms = read_row(source, index)
        except BadRow as error:
            bad.append(error)
        else:
            atoms.info.setdefault("sid", index)
            good.append(atoms)
    if bad and (not skip_bad or not good):
        raise BadRows(str(path), bad, len(source), ADVICE)
    return named(good, source.target_key), bad


def _open(path: Path, target_key: str | None) -> Source:
    if not path.is_file() or path.name.endswith((*DATABASES, ".lmdb")):
        return open_source(path, target_key)
    if target_key is not None:
        raise ValueError(
            f"{path}: its structures have no targets, which --only wrong compares with. Give pairs, "
            "such as a data set of the format is2rs or a folder of trajectories"
        )
    return FramesSource(path)


def named(structures: Iterable[Atoms], target_key: str | None = None) -> list[Start]:
    """Starts of structures with ``sid`` in their ``info``; its place tells those of one name apart.

    Raises:
        ValueError: names repeat even so.
    """
    rows = list(structures)
    sids = [str(atoms.info["sid"]) for atoms in rows]
    times = Counter(sids)
    names = [f"{sid}_row{i}" if times[sid] > 1 else sid for i, sid in enumerate(sids)]
    if said := repeated_names(names):
        raise ValueError(said)
    return [_start(name, row, target_key) for name, row in zip(names, rows, strict=True)]


def _start(name: str, row: Atoms, target_key: str | None) -> Start:
    atoms = row.copy()
    atoms.info = {key: row.info[key] for key in KEPT if key in row.info}
    for key in set(atoms.arrays) - ARRAYS:
        del atoms.arrays[key]
    if "masses" in row.info:
        atoms.set_masses(masses(row))
    if "free" in row.info:
        atoms.set_constraint(FixAtoms(mask=~free_atoms(row)))
    target = None
    if target_key is not None:
        target = atoms.copy()
        target.positions = row.info[target_key]
    return Start(name, atoms, target)
