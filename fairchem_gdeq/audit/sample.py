"""What an audit is made on: pairs of a start and its target, and frames with forces."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from fairchem_gdeq.audit.sharing import shared
from fairchem_gdeq.data.reading import Source, read_row
from fairchem_gdeq.data.rows import TARGET, BadRow
from fairchem_gdeq.data.sources import open_source
from fairchem_gdeq.evaluation.task import Batch, to_ase
from fairchem_gdeq.training.ranks import gather
from fairchem_gdeq.training.run_frames import Rows

SAID = 5  # bad ones that are named in a sentence
T = TypeVar("T")


class Pair(NamedTuple):
    """A start and its target: the same atoms, with ``FixAtoms``, tags and, in ``info``, masses."""

    name: str
    start: Atoms
    target: Atoms

    @property
    def elements(self) -> set[int]:
        """Atomic numbers."""
        return {int(number) for number in self.start.numbers}


class Frame(NamedTuple):
    """A structure with forces [n, 3], eV/Angstrom, and where there is one its energy, eV."""

    name: str
    atoms: Atoms
    forces: NDArray[np.float64]
    energy: float | None


@dataclass(frozen=True)
class Sample(Generic[T]):
    """Those of a sample that can be used, and a sentence on each of the others."""

    items: list[T] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @property
    def remark(self) -> str:
        """On the bad ones; empty where there are none."""
        if not self.bad:
            return ""
        more = f" and {len(self.bad) - SAID} more" if len(self.bad) > SAID else ""
        return f"Left out: {'; '.join(self.bad[:SAID])}{more}."


def chosen(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, at random and always the same, in order."""
    return sorted(np.random.default_rng(0).permutation(count)[:most].tolist())


def split_pairs(rows: Rows, most: int) -> Sample[Pair]:
    """A sample of a split that is open already."""

    def pair_of(index: int) -> Pair:
        row = rows[index]
        name = str(row.sid if isinstance(row.sid, str) else row.sid[0])
        if TARGET not in row:
            raise BadRow(name, "it has no target")
        start, target = (_atoms(row, name, where) for where in (row.pos, row.pos_relaxed))
        return Pair(name, start, target)

    return _read(pair_of, chosen(len(rows), most))


def folder_pairs(folders: str | Sequence[str], most: int) -> Sample[Pair]:
    """A sample of IS2RS rows in folders.

    Raises:
        FileNotFoundError, ValueError: as ``open_source``.
    """
    places = _places(folders, TARGET)

    def pair_of(index: int) -> Pair:
        source, row = places[index]
        start = read_row(source, row)
        target = start.copy()
        target.set_positions(np.asarray(start.info.pop(TARGET), float), apply_constraint=False)
        return Pair(str(start.info.get("sid", row)), start, target)

    return _read(pair_of, chosen(len(places), most))


def folder_frames(folders: str | Sequence[str], most: int) -> Sample[Frame]:
    """A sample of frames in folders; one without forces is bad.

    Raises:
        FileNotFoundError, ValueError: as ``open_source``.
    """
    places = _places(folders, None)

    def frame_of(index: int) -> Frame:
        source, row = places[index]
        atoms = read_row(source, row)
        where = f"{atoms.info.get('sid', row)} in {source.where(row)}"
        results = {} if atoms.calc is None else atoms.calc.results
        forces = np.asarray(results.get("forces", np.nan), dtype=float)
        if forces.shape != atoms.positions.shape:
            raise BadRow(where, "the frame has no forces")
        if not np.isfinite(forces).all():
            raise BadRow(where, "the frame's forces are not finite")
        energy = results.get("energy")
        name = str(atoms.info.get("sid", f"frame {row}"))
        return Frame(name, atoms, forces, None if energy is None else float(energy))

    return _read(frame_of, chosen(len(places), most))


def relaxation_of(name: str) -> str:
    """What a frame is one of: its name without the number at its end, ``Ti-N-fcc_4`` or ``a_step12``."""
    return re.sub(r"(?<=.)_(step)?\d+$", "", name)


def _places(folders: str | Sequence[str], key: str | None) -> list[tuple[Source, int]]:
    """All rows of folders."""
    names = [folders] if isinstance(folders, str) else folders
    sources = [open_source(name, key) for name in names]
    return [(source, row) for source in sources for row in range(len(source))]


def _read(read: Callable[[int], T], indices: list[int]) -> Sample[T]:
    """All of them, of which each rank reads a part."""
    found: Sample[T] = Sample()
    for index in shared(indices):
        try:
            found.items.append(read(index))
        except BadRow as error:
            found.bad.append(str(error))
    return Sample(gather(found.items), gather(found.bad))


def _atoms(row: Batch, name: str, positions: Tensor) -> Atoms:
    """A row of fairchem's data at positions [n, 3], with what a potential and the method read of it."""
    (atoms,) = to_ase(row, positions)
    atoms.info |= {"sid": name, "masses": row.mass.double().cpu().numpy()}
    for key in ("charge", "spin"):
        if key in row:
            atoms.info[key] = int(row[key])
    return atoms
