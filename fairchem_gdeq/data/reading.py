"""Rows of a source, checked: one that is read, or all of them with a list of those that cannot be used.

A source answers ``read(i)`` with a start structure whose ``info`` holds the target positions.
``read_row`` checks it; ``scan`` checks all rows and collects what is wrong instead of stopping.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ase import Atoms

from fairchem_gdeq.data.constraints import use_fix_atoms
from fairchem_gdeq.data.rows import BadRow, check, check_names

LISTED = 50  # bad rows in one message


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
    """A checked row; a constraint that is a ``FixAtoms`` in effect has become one.

    Raises:
        BadRow: it cannot be read or used.
    """
    atoms = _read(source, index)
    where = _called(atoms, source.where(index))
    try:
        check(atoms, where, source.target_key)
    except BadRow:
        raise
    except Exception as error:  # what NumPy makes of entries that are no arrays of numbers
        raise BadRow(where, f"cannot be used ({_on_one_line(error)})") from error
    use_fix_atoms(atoms)
    return atoms


def _read(source: Source, index: int) -> Atoms:
    """A row as its source gives it, unless numbers have been lost on the way.

    Raises:
        BadRow: it cannot be read.
    """
    try:
        _refuse_complex_numbers()
        try:
            return source.read(index)
        except np.exceptions.ComplexWarning as error:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # for its name
                where = _called(source.read(index), source.where(index))
            raise BadRow(where, "complex numbers: expected real ones in every array") from error
    except BadRow:
        raise
    except Exception as error:
        # Whatever a library raises on damaged bytes: lmdb, zlib, json, pickle, ase, numpy.
        raise BadRow(source.where(index), f"cannot be read ({_on_one_line(error)})") from error


def _refuse_complex_numbers() -> None:
    """Have ASE fail where it makes real numbers of complex ones, of which it says no more than a warning.

    Set once, not around every row: when filters change, Python forgets which warnings it has shown.
    """
    kind = np.exceptions.ComplexWarning
    if not warnings.filters or warnings.filters[0][:3:2] != ("error", kind):
        warnings.filterwarnings("error", category=kind, module=r"ase\b|numpy\b")


def _called(atoms: Atoms, where: str) -> str:
    """The place of a row, and its name.

    Raises:
        BadRow: as ``check_names``.
    """
    check_names(atoms, where)
    return f"{where}, structure {atoms.info.get('sid')}"


def _on_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


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
