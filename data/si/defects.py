"""Unrelaxed point defects in cubic silicon, all built around one host site.

The host lattice has the same coordinates in every structure and the (first) defect sits on the
host atom nearest the cell centre, so that a model which reads absolute coordinates (ADAPT) sees
one frame of reference.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic

LATTICE = 5.463  # Angstrom: the minimum of SevenNet-0 for diamond silicon
BOND = LATTICE * np.sqrt(3.0) / 4.0
IMPURITIES = ("B", "C", "N", "O", "Al", "P", "S", "Ga", "Ge", "As", "Se", "Sn")
CLOSEST = 1.3  # Angstrom: no two atoms of a start structure are nearer than this
INTERSTITIAL_SITES = ("T", "H", "BC", "split110")
SPLIT = {"int_split110": (1.0, 1.0, 0.0), "int_split100": (1.0, 0.0, 0.0)}  # their directions


@dataclass(frozen=True)
class Defect:
    """One defect *species-and-site pair*: the unit that is never shared between two splits.

    Attributes:
        kind: what is done to the host, e.g. ``"sub"``, ``"int_T"``, ``"sub+vac1"``.
        species: the elements put in, in the order in which ``kind`` names their sites.
    """

    kind: str
    species: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A label that is also a file name, such as ``int_T-Ge``."""
        return "-".join((self.kind, *self.species))


def catalogue() -> Iterator[Defect]:
    """Every defect the first round of the data set may draw from, in a fixed order."""
    for kind in ("vac", "divac1", "divac2", "divac3"):
        yield Defect(kind)
    for site, element in itertools.product(INTERSTITIAL_SITES, ("Si", *IMPURITIES)):
        yield Defect(f"int_{site}", (element,))
    for element in IMPURITIES:
        yield Defect("sub", (element,))
        yield Defect("sub+vac1", (element,))
        yield Defect("sub+vac2", (element,))
        yield Defect("sub+int_split110", (element, "Si"))
    for pair in itertools.combinations_with_replacement(IMPURITIES, 2):
        yield Defect("sub+sub1", pair)
    for pair in itertools.permutations(IMPURITIES, 2):
        yield Defect("sub+int_T", pair)
        yield Defect("sub+int_BC", pair)


def further() -> Iterator[Defect]:
    """What the second round of the data set adds to :func:`catalogue`, in a fixed order."""
    for element in ("Si", *IMPURITIES):
        yield Defect("int_split100", (element,))
    for element in IMPURITIES:
        yield Defect("sub+vac3", (element,))
        yield Defect("sub+vac1+vac2", (element,))
    for pair in itertools.combinations_with_replacement(IMPURITIES, 2):
        yield Defect("sub+sub2", pair)
        yield Defect("sub+sub3", pair)
    for element in IMPURITIES:
        for other in (element, "Si"):
            yield Defect("sub+int_T", (element, other))
            yield Defect("sub+int_BC", (element, other))
    for pair in itertools.product(IMPURITIES, IMPURITIES):
        yield Defect("sub+int_split110", pair)
        yield Defect("sub+sub1+vac2", pair)
    for pair in itertools.product(IMPURITIES, ("Si", *IMPURITIES)):
        yield Defect("sub+int_H", pair)
        yield Defect("sub+int_split100", pair)
    for triple in itertools.permutations(IMPURITIES, 3):
        yield Defect("sub+sub1+int_T", triple)


def host(repeat: tuple[int, int, int] = (2, 2, 2)) -> Atoms:
    """The perfect crystal, ``8 * prod(repeat)`` atoms."""
    return bulk("Si", "diamond", a=LATTICE, cubic=True) * repeat


def _centre_and_shells(crystal: Atoms) -> tuple[int, list[np.ndarray]]:
    """Index of the host atom nearest the cell centre, and its first three neighbour shells."""
    centre = int(np.argmin(np.linalg.norm(crystal.positions - crystal.cell.sum(0) / 2, axis=1)))
    distance = crystal.get_distances(centre, range(len(crystal)), mic=True)
    edges = np.array([0.1, 1.2, 1.75, 2.0]) * BOND
    shells = [
        np.flatnonzero((distance > lo) & (distance < hi)) for lo, hi in itertools.pairwise(edges)
    ]
    return centre, shells


def build(defect: Defect, crystal: Atoms | None = None) -> tuple[Atoms, np.ndarray]:
    """The unrelaxed defect and the point [3] (Angstrom) that it is built around.

    Args:
        crystal: the host, 64 atoms where there is none.

    Raises:
        ValueError: the kind is none that :func:`catalogue` or :func:`further` yields.
    """
    atoms = host() if crystal is None else crystal.copy()
    centre, (first, second, third) = _centre_and_shells(atoms)
    origin = atoms.positions[centre].copy()
    bonds = find_mic(atoms.positions[first] - origin, atoms.cell)[0]
    species = list(defect.species)
    removed: list[int] = []
    added: list[tuple[str, np.ndarray]] = []
    for part in defect.kind.split("+"):
        if part == "vac":
            removed = [centre]
        elif part in ("divac1", "divac2", "divac3"):
            removed = [centre, int({"1": first, "2": second, "3": third}[part[-1]][0])]
        elif part in ("vac1", "vac2", "vac3"):
            removed.append(int({"1": first, "2": second, "3": third}[part[-1]][0]))
        elif part == "sub":
            atoms.symbols[centre] = species.pop(0)
        elif part in ("sub1", "sub2", "sub3"):
            shell = {"1": first, "2": second, "3": third}[part[-1]]
            atoms.symbols[int(shell[0])] = species.pop(0)
        elif part == "int_T":  # the tetrahedral hollow opposite a bond, one bond length away
            added.append((species.pop(0), origin - bonds[1]))
        elif part == "int_H":  # the hexagonal ring: halfway between two tetrahedral hollows
            added.append((species.pop(0), origin - bonds[1] - 0.5 * bonds[2]))
        elif part == "int_BC":  # the two bonded atoms make room: 1.65 Angstrom on either side
            added.append((species.pop(0), origin + 0.5 * bonds[1]))
            room = (1.65 / BOND - 0.5) * bonds[1]
            atoms.positions[centre] -= room
            atoms.positions[first[1]] += room
        elif part in SPLIT:  # two atoms share one site, 2.4 Angstrom apart
            site = int(first[0]) if defect.kind.startswith("sub+") else centre
            half = 1.2 * np.array(SPLIT[part]) / np.linalg.norm(SPLIT[part])
            position = atoms.positions[site].copy()
            atoms.positions[site] = position - half
            added.append((species.pop(0), position + half))
        else:
            raise ValueError(
                f"unknown defect kind {defect.kind!r}: no part {part!r} in the catalogues"
            )
    for symbol, position in added:
        atoms.append(symbol)
        atoms.positions[-1] = position
    del atoms[removed]
    return atoms, origin


def distort(atoms: Atoms, origin: np.ndarray, seed: str) -> Atoms:
    """Bond distortions around the defect, the way defect searches look for competing minima.

    Each atom within 1.25 bond lengths of ``origin`` moves along its direction from the origin by up
    to 30% of a bond, independently, and atoms are rattled with a Gaussian of 0.08 Angstrom that
    fades to 0.01 Angstrom away from the defect. A draw that brings two atoms closer than
    ``CLOSEST`` is drawn again. ``seed`` (any text) makes it reproducible.
    """
    digest = hashlib.sha256(seed.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    vector, distance = find_mic(atoms.positions - origin, atoms.cell)
    near = (distance > 0.3) & (distance < 1.25 * BOND)
    width = 0.01 + 0.07 * np.exp(-((distance / 4.0) ** 2))
    while True:
        out = atoms.copy()
        stretch = rng.uniform(-0.3, 0.3, len(out)) * BOND
        out.positions[near] += (vector[near] / distance[near, None]) * stretch[near, None]
        out.positions += rng.normal(size=out.positions.shape) * width[:, None]
        pairs = out.get_all_distances(mic=True)[np.triu_indices(len(out), 1)]
        if pairs.min() > CLOSEST:
            return out
