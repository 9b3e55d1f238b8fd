"""What can go wrong with a target: the adsorbate falls apart or leaves the surface.

As OC20 flags its relaxations; such rows stay in the set.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

BOND = 1.25  # times the sum of covalent radii: within, two atoms of the adsorbate are bonded
CONTACT = 1.5  # times the same: within, an atom of the adsorbate touches the metal
ADSORBATE = 2  # tag


def _within(atoms: Atoms, first: NDArray, second: NDArray, factor: float) -> NDArray[np.bool_]:
    """Which pairs are nearer than ``factor`` times the sum of their radii, [first, second]."""
    radii = covalent_radii[atoms.numbers]
    distance = atoms.get_all_distances(mic=True)
    return (distance < factor * (radii[:, None] + radii[None, :]))[np.ix_(first, second)]


def anomaly(start: Atoms, target: Atoms) -> str:
    """``"dissociated"``: a bond of the adsorbate in ``start`` is none in ``target``;
    ``"desorbed"``: no atom of it touches the metal in ``target``; else ``""``.
    """
    tags = start.get_tags()
    adsorbate, metal = np.flatnonzero(tags == ADSORBATE), np.flatnonzero(tags != ADSORBATE)
    bonded = [_within(atoms, adsorbate, adsorbate, BOND) for atoms in (start, target)]
    if (bonded[0] & ~bonded[1]).any():
        return "dissociated"
    if not _within(target, adsorbate, metal, CONTACT).any():
        return "desorbed"
    return ""
