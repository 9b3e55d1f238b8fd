"""Two atoms alone, from very near to the cutoff: do they repel where they must, and is the curve whole?

A direct-force model has no energy to trust, so the curve is that of the force along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike, NDArray

from fairchem_gdeq.audit.frames import Forces
from fairchem_gdeq.audit.rows import NEITHER, Row, not_made, paired, share

CHECK = "dimers"
CONTACT = 0.7  # times the sum of covalent radii: nearer than this, two atoms must repel each other
NEAREST = 0.5  # Angstrom
SPACING = 0.05  # Angstrom
EDGE = 1e-3  # Angstrom, on both sides of the cutoff
SMALL_STEP = 1e-3  # eV/Angstrom: changes of the step there below this are none


@dataclass(frozen=True)
class Curve:
    """The force between two atoms.

    Attributes:
        pair: their atomic numbers.
        distances: [d], ascending, Angstrom.
        forces: [d], eV/Angstrom, positive where they repel each other.
        contact: distance below which they must, Angstrom.
        step: how far the force jumps at the cutoff, eV/Angstrom.
    """

    pair: tuple[int, int]
    distances: NDArray[np.float64]
    forces: NDArray[np.float64]
    contact: float
    step: float

    @property
    def name(self) -> str:
        """As in ``Si-Ge``."""
        return "-".join(chemical_symbols[number] for number in self.pair)

    @property
    def repels_from(self) -> float:
        """The shortest distance from which on the atoms repel each other up to contact, Angstrom.

        It is the contact where they do not even repel there.
        """
        near = self.distances <= self.contact
        wrong = np.flatnonzero(~(self.forces[near] > 0))
        if not len(wrong):
            return float(self.distances[0])
        return float(min(self.distances[near.nonzero()[0][wrong[-1]] + 1], self.contact))

    @property
    def hole(self) -> bool:
        """Whether they attract each other somewhere nearer than contact."""
        return bool((~(self.forces[self.distances <= self.contact] > 0)).any())

    @property
    def turns(self) -> int:
        """How often the force changes sign beyond contact; once is what a bond does."""
        signs = np.sign(self.forces[self.distances > self.contact])
        signs = signs[signs != 0]
        return int((signs[1:] != signs[:-1]).sum())


def pairs_in(structures: Iterable[ArrayLike]) -> list[tuple[int, int]]:
    """Pairs of elements of which both are in one structure, or two atoms of one.

    Args:
        structures: atomic numbers [n] of each.
    """
    found: set[tuple[int, int]] = set()
    for atoms in structures:
        numbers, counts = np.unique(np.asarray(atoms), return_counts=True)
        found.update(combinations(numbers.tolist(), 2))
        found.update(
            (int(n), int(n)) for n, count in zip(numbers, counts, strict=True) if count > 1
        )
    return sorted(found)


def curves(potential: Forces, pairs: Sequence[tuple[int, int]], cutoff: float) -> list[Curve]:
    """The curve of each pair.

    Args:
        potential: asked for all of them together.
        pairs: atomic numbers.
        cutoff: of the potential, Angstrom.
    """
    grids = [_grid(pair, cutoff) for pair in pairs]
    asked = [_dimer(pair, r, cutoff) for pair, grid in zip(pairs, grids, strict=True) for r in grid]
    axial = np.array([(forces[1, 0] - forces[0, 0]) / 2 for forces in potential(asked)])
    ends = np.cumsum([len(grid) for grid in grids])[:-1]
    found = []
    for pair, grid, forces in zip(pairs, grids, np.split(axial, ends), strict=True):
        step = float(abs(forces[-1] - forces[-2]))
        found.append(Curve(pair, grid[:-1], forces[:-1], _contact(pair), step))
    return found


def dimer_rows(base: Sequence[Curve], tuned: Sequence[Curve]) -> list[Row]:
    """Two models' curves of the same pairs, pair by pair."""
    if not base:
        return [not_made(CHECK, "curves", "There are no two atoms in one structure.")]
    opened = [b.name for a, b in zip(base, tuned, strict=True) if b.hole and not a.hole]
    closed = [b.name for a, b in zip(base, tuned, strict=True) if a.hole and not b.hole]
    holes = f"Attraction nearer than {CONTACT:g} times the sum of covalent radii."
    holes += f" Only after tuning: {', '.join(opened)}." if opened else ""
    holes += f" Only before: {', '.join(closed)}." if closed else ""

    def of(value: Callable[[Curve], float]) -> list[list[float]]:
        return [[value(curve) for curve in each] for each in (base, tuned)]

    together = f"{len(base)} pairs of elements that are together in a structure."
    starts = of(lambda c: c.repels_from)
    return [
        paired(CHECK, "repulsive down to", "Å", starts, remark=together),
        share(CHECK, "pairs with a hole", of(lambda c: c.hole), remark=holes),
        paired(CHECK, "strongest attraction below contact", "eV/Å", of(_attraction)),
        paired(
            CHECK,
            "sign changes beyond contact",
            "",
            of(lambda c: c.turns),
            good=NEITHER,
            remark="A bond has one.",
        ),
        paired(CHECK, "step at the cutoff", "eV/Å", of(lambda c: c.step), least=SMALL_STEP),
    ]


def _attraction(curve: Curve) -> float:
    near = curve.forces[curve.distances <= curve.contact]
    return float(np.maximum(-near, 0.0).max(initial=0.0))


def _contact(pair: tuple[int, int]) -> float:
    return float(CONTACT * covalent_radii[list(pair)].sum())


def _grid(pair: tuple[int, int], cutoff: float) -> NDArray[np.float64]:
    """Distances to the cutoff; the last two are on its two sides."""
    nearest = min(NEAREST, _contact(pair) / 2)
    inside = np.arange(nearest, cutoff - SPACING / 2, SPACING)
    return np.concatenate([inside, [cutoff - EDGE, cutoff + EDGE]])


def _dimer(pair: tuple[int, int], distance: float, cutoff: float) -> Atoms:
    """Two atoms along x, in a box so wide that a model which takes it for periodic sees no image."""
    atoms = Atoms(numbers=pair, positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    atoms.center(vacuum=1.5 * cutoff)
    return atoms
