"""What an IS2RS row must be, whatever file it comes from, and the list of those that are not.

A source answers ``read(i)`` with a start structure whose ``info`` holds the target positions.
``read_row`` checks it; ``scan`` checks all rows and collects what is wrong instead of stopping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

TARGET = "pos_relaxed"  # where our own rows keep the relaxed positions
SMALLEST_VOLUME = 0.1  # Angstrom^3; also what fairchem asks of partly periodic structures
FARTHEST = 1e4  # Angstrom, from the origin
SAME_PLACE = 1e-2  # Angstrom
SAME_CELL = 1e-3  # Angstrom, between the cells of start and target
LISTED = 50  # bad rows in one message


class BadRow(ValueError):
    """A row that cannot be used: ``where`` names file and structure, ``reason`` what is wrong."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadRows(ValueError):
    """All bad rows of a data set of ``total`` rows, and what to do about them."""

    def __init__(self, source: str, bad: list[BadRow], total: int, advice: str) -> None:
        super().__init__(source, bad, total, advice)
        self.bad = bad
        text = f"{source}: {len(bad)} of {total} rows cannot be used"
        if len(bad) > 1:
            text = f"{text}:\n{listed(bad)}\n{text}, the first"
        self.text = f"{text}: {bad[0]}. {advice}"

    def __str__(self) -> str:
        return self.text


def listed(bad: list[BadRow]) -> str:
    """One line a bad row, at most ``LISTED``."""
    lines = [f"  {row}" for row in bad[:LISTED]]
    if len(bad) > LISTED:
        lines.append(f"  ... and {len(bad) - LISTED} more")
    return "\n".join(lines)


class Source(Protocol):
    """Rows from somewhere. ``target_key`` is the target's key in ``info``; None: no targets."""

    target_key: str | None

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """File and record of a row; works for a row that cannot be read."""
        ...

    def read(self, index: int) -> Atoms:
        """The start, with ``sid`` and the target [n, 3] in ``info``; raises whatever it meets."""
        ...


def read_row(source: Source, index: int) -> Atoms:
    """A checked row.

    Raises:
        BadRow: it cannot be read or used.
    """
    try:
        atoms = source.read(index)
    except BadRow:
        raise
    except Exception as error:
        # Whatever a library raises on damaged bytes: lmdb, zlib, json, pickle, ase, numpy.
        raise BadRow(
            source.where(index), f"cannot be read ({type(error).__name__}: {error})"
        ) from error
    where = f"{source.where(index)}, structure {atoms.info.get('sid')}"
    try:
        check(atoms, where, source.target_key)
    except BadRow:
        raise
    except Exception as error:  # what NumPy makes of entries that are no arrays of numbers
        raise BadRow(where, f"cannot be used ({type(error).__name__}: {error})") from error
    return atoms


def check(atoms: Atoms, where: str, target_key: str | None = TARGET) -> None:
    """Refuse a start or target that no relaxation can begin or end at.

    Raises:
        BadRow: names ``where``, what was expected and what was found.
    """
    n = len(atoms)
    if n == 0:
        raise BadRow(where, "no atoms")
    if atoms.numbers.min() < 1 or atoms.numbers.max() > 118:
        raise BadRow(where, f"atomic numbers from {atoms.numbers.min()} to {atoms.numbers.max()}")
    if not np.isfinite(atoms.positions).all():
        raise BadRow(where, "start positions contain NaN or infinity")
    _check_cell(atoms, where)
    _check_arrays(atoms, where)
    _check_places(atoms, atoms.positions, "start positions", where)
    if n == 1:
        raise BadRow(where, "one atom: expected at least two, since one alone has nowhere to go")
    if not free_atoms(atoms).any():
        raise BadRow(where, f"all {n} atoms are fixed: expected some that may move")
    if target_key is None:
        return
    if target_key not in atoms.info:
        known = ", ".join(sorted(map(str, atoms.info))) or "none"
        raise BadRow(
            where,
            f"no {target_key!r} among its data (it has: {known}): write the relaxed positions "
            "under that key, or name the right one as target_key",
        )
    try:
        target = np.asarray(atoms.info[target_key], dtype=float)
    except (TypeError, ValueError) as error:
        raise BadRow(where, f"{target_key}: expected numbers, found none ({error})") from error
    if target.shape != (n, 3):
        raise BadRow(
            where,
            f"{target_key} has shape {target.shape}, expected ({n}, 3): "
            "start and target must have the same atoms in the same order",
        )
    if not np.isfinite(target).all():
        raise BadRow(where, f"{target_key} positions contain NaN or infinity")
    _check_places(atoms, target, target_key, where)


def _check_places(atoms: Atoms, positions: NDArray[np.float64], what: str, where: str) -> None:
    """Refuse positions [n, 3], Angstrom, that single precision cannot tell, and atoms on one another."""
    farthest = float(np.abs(positions).max())
    if farthest > FARTHEST:
        raise BadRow(
            where, f"{what} reach to {farthest:.3g} Angstrom: expected at most {FARTHEST:g}"
        )
    if pair := _on_one_another(atoms, positions):
        raise BadRow(
            where,
            f"{what} have atoms {pair[0]} and {pair[1]} in the same place: expected one atom there",
        )


def _on_one_another(atoms: Atoms, positions: NDArray[np.float64]) -> tuple[int, int] | None:
    """The first two atoms that are within ``SAME_PLACE``, or less in a skewed cell; images count."""
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else np.eye(3)
    scaled = np.linalg.solve(cell.T, positions.T).T
    for _ in range(2):  # a tiny negative number is 1 after the first
        scaled[:, atoms.pbc] %= 1.0
    tree = cKDTree(scaled, boxsize=np.where(atoms.pbc, 1.0, 0.0))
    return min(tree.query_pairs(SAME_PLACE / np.linalg.norm(cell, ord=2)), default=None)


def _check_cell(atoms: Atoms, where: str) -> None:
    cell = np.asarray(atoms.cell)
    if not np.isfinite(cell).all():
        raise BadRow(where, "the cell contains NaN or infinity")
    if atoms.pbc.any() and atoms.cell.volume < SMALLEST_VOLUME:
        raise BadRow(
            where,
            f"periodic, but its cell {cell.round(3).tolist()} has a volume of "
            f"{atoms.cell.volume:.3g} Angstrom^3",
        )


def _check_arrays(atoms: Atoms, where: str) -> None:
    for key in ("masses", "free"):
        shape = np.shape(atoms.info.get(key, atoms.numbers))
        if shape != atoms.numbers.shape:
            raise BadRow(where, f"{key} has shape {shape}, expected ({len(atoms)},)")
    if not (masses(atoms) > 0).all():
        raise BadRow(where, "expected positive, finite masses of all atoms")


def check_pair(start: Atoms, target: Atoms, where: str) -> None:
    """Refuse a target of other atoms, another order or another cell than the start.

    Raises:
        BadRow: names the first difference.
    """
    if len(start) != len(target):
        raise BadRow(where, f"{len(start)} atoms at the start, {len(target)} in the target")
    differ = np.flatnonzero(start.numbers != target.numbers)
    if len(differ):
        i = differ[0]
        raise BadRow(
            where,
            f"species order differs: atom {i} is {start.symbols[i]} at the start and "
            f"{target.symbols[i]} in the target",
        )
    change = np.abs(np.asarray(start.cell) - np.asarray(target.cell)).max()
    if change > SAME_CELL:
        raise BadRow(
            where,
            f"the cell changes by {change:.3g} Angstrom from start to target; IS2RS relaxations "
            "are at fixed cell",
        )


def masses(atoms: Atoms) -> NDArray[np.float64]:
    """Masses [n], amu: ``info["masses"]`` where given, else those of the structure."""
    return np.asarray(atoms.info.get("masses", atoms.get_masses()), dtype=float)


def free_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Atoms [n] that may move: neither in a FixAtoms nor excluded by ``info["free"]``."""
    free = np.array(atoms.info.get("free", np.ones(len(atoms))), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
    return free


@dataclass
class Scan:
    """What a look at every row found: indices, atom counts and names of the good ones, and the bad.

    A row without a name is known by its index.
    """

    good: list[int] = field(default_factory=list)
    natoms: list[int] = field(default_factory=list)
    sids: list[str] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def scan(source: Source, indices: Iterable[int]) -> Scan:
    """Check rows, collecting what is wrong."""
    found = Scan()
    for index in indices:
        try:
            atoms = read_row(source, index)
        except BadRow as error:
            found.bad.append(error)
        else:
            found.good.append(index)
            found.natoms.append(len(atoms))
            found.sids.append(str(atoms.info.get("sid", index)))
    return found


def repeated_names(sids: Iterable[str]) -> str | None:
    """A sentence on names that several rows have, or None where each has its own."""
    times = {sid: number for sid, number in Counter(sids).items() if number > 1}
    if not times:
        return None
    shown = ", ".join(f"{sid} ({number} rows)" for sid, number in list(times.items())[:5])
    return (
        f"{sum(times.values())} rows have a name (sid) that others have too, {len(times)} such names: "
        f"{shown}{', ...' if len(times) > 5 else ''}. Every row is trained on and scored; but a file "
        "for the leaderboard or of reference forces needs a name of its own for each"
    )
