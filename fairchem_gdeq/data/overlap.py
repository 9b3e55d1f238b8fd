"""Frames that are structures of a held-out split: found by their atoms, whatever they are called.

Two structures coincide if they have the same cell and the same atoms of every element within a small
tolerance, in any order, wrapped into the cell in any way and shifted as a whole by anything. (One that is
turned is another structure here.)

Fingerprints are compared first. They change by no more than twice as much as an atom moves, so no pair
that coincides is lost by them, and hardly another is left for the exact comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# Angstrom. A structure that was written and read again is within the first. Relaxations of other starts
# that end in one minimum may be within the second, and hardly within the first: of the silicon training
# targets, relaxed to 0.02 eV/Angstrom, some are within 0.01 of a held-out one, the nearest is 0.0017 off.
SAME, NEAR = 1e-3, 1e-2
SAME_CELL = 1e-3  # Angstrom
NEIGHBOURS = 8  # of an atom, in its fingerprint
SIGHT = 8.0  # Angstrom, as far as a fingerprint looks


class Named(NamedTuple):
    """A structure, and how a message calls it."""

    name: str
    atoms: Atoms


@dataclass(frozen=True)
class Overlap:
    """A frame that coincides with a held-out structure.

    Attributes:
        frame, held: their names.
        distance: farthest that an atom of one is from its partner in the other, Angstrom.
    """

    frame: str
    held: str
    distance: float


def find_overlaps(
    frames: Iterable[Named], held: Iterable[Named], tolerance: float = SAME
) -> Iterator[Overlap]:
    """Every pair of a frame and a held-out structure that coincide.

    Args:
        frames: read one after the other.
        held: all are kept in memory.
        tolerance: farthest that an atom may be from its partner, Angstrom.
    """
    groups: dict[bytes, list[_Print]] = {}
    for each in held:
        groups.setdefault(_kind(each.atoms), []).append(_Print(each))
    stacks = {
        kind: (np.array([p.cell for p in group]), np.array([p.values for p in group]))
        for kind, group in groups.items()
    }
    for each in frames:
        kind = _kind(each.atoms)
        if kind not in groups:
            continue
        cells, values = stacks[kind]
        alike = np.abs(cells - np.asarray(each.atoms.cell)).max(axis=(1, 2)) < SAME_CELL
        if not alike.any():
            continue
        seen = np.abs(values - fingerprint(each.atoms)).max(axis=1, initial=0.0)
        for index in np.flatnonzero(alike & (seen <= 2 * tolerance + SAME_CELL)):
            known = groups[kind][index].named
            distance = separation(each.atoms, known.atoms, tolerance)
            if distance is not None:
                yield Overlap(each.name, known.name, distance)


class _Print:
    """A held-out structure beside its fingerprint."""

    def __init__(self, named: Named) -> None:
        self.named, self.cell = named, np.asarray(named.atoms.cell)
        self.values = fingerprint(named.atoms)


def _kind(atoms: Atoms) -> bytes:
    """Which atoms of which element there are, and which directions are periodic."""
    return bytes(np.sort(atoms.numbers).astype(np.int16).tobytes() + atoms.pbc.tobytes())


def fingerprint(atoms: Atoms) -> NDArray[np.float64]:
    """Distances [2 n] of each atom from its nearest neighbour and from its nearest few, in the mean.

    They are sorted within each element, so they do not depend on the order of atoms, and each changes
    by at most twice as much as the farthest atom moves. Angstrom.
    """
    if len(atoms) == 0:
        return np.zeros(0)
    around, _ = _images(atoms)
    sight = min([SIGHT, *_widths(atoms)])
    several = min(NEIGHBOURS, len(around) - 1)
    if several == 0:
        return np.full(2, sight)
    found, _ = cKDTree(around).query(around[: len(atoms)], several + 1)
    found = np.minimum(np.reshape(found, (len(atoms), -1))[:, 1:], sight)
    columns = [found[:, 0], found.mean(axis=1)]
    return np.concatenate([column[np.lexsort((column, atoms.numbers))] for column in columns])


def separation(one: Atoms, other: Atoms, tolerance: float = SAME) -> float | None:
    """How far two structures of the same elements and cell are apart; None if they do not coincide.

    Atoms of one element that are closer together than twice the tolerance are not told apart.

    Returns:
        The distance of the farthest atom from its partner, once the mean shift is taken out, Angstrom.
    """
    if len(one) == 0:
        return 0.0
    kinds, counts = np.unique(one.numbers, return_counts=True)
    rarest = kinds[np.argmin(counts)]
    around, owners = _images(other)
    tree = cKDTree(around)
    anchor = one.positions[np.flatnonzero(one.numbers == rarest)[0]]
    for place in other.positions[other.numbers == rarest]:
        shifted, _ = _wrapped(one.positions + (place - anchor), other)
        # The anchor itself is as far from its partner as any atom may be.
        reached, nearest = tree.query(shifted, distance_upper_bound=2.5 * tolerance)
        if not np.isfinite(reached).all():
            continue
        partners = owners[nearest]
        if len(np.unique(partners)) < len(one) or (other.numbers[partners] != one.numbers).any():
            continue
        move = around[nearest] - shifted
        farthest = float(np.linalg.norm(move - move.mean(axis=0), axis=1).max())
        if farthest <= tolerance:
            return farthest
    return None


def _wrapped(
    positions: NDArray[np.float64], atoms: Atoms
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions [n, 3] in the cell along its periodic directions, and the cell [3, 3], completed."""
    cell = np.asarray(atoms.cell.complete())
    scaled = np.linalg.solve(cell.T, positions.T).T
    scaled -= np.where(atoms.pbc, np.floor(scaled), 0.0)
    return scaled @ cell, cell


def _images(atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Positions [m, 3] of the wrapped atoms, first of all, and of their images in the cells around;
    and whose image [m] each is.
    """
    inside, cell = _wrapped(atoms.positions, atoms)
    steps = itertools.product(*((0, 1, -1) if periodic else (0,) for periodic in atoms.pbc))
    around = np.concatenate([inside + np.array(step) @ cell for step in steps])
    return around, np.tile(np.arange(len(atoms)), len(around) // len(atoms))


def _widths(atoms: Atoms) -> list[float]:
    """How far the cell's faces are apart in each periodic direction, Angstrom.

    All that is nearer to an atom in the cell is in the cells around it.
    """
    inverse = np.linalg.inv(np.asarray(atoms.cell.complete()))
    return [float(1 / np.linalg.norm(inverse[:, i])) for i in range(3) if atoms.pbc[i]]
