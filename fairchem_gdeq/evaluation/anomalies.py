"""What can go wrong with an adsorbate and its surface in a relaxation, by which atoms are bonded.

The kinds are those that OC20 flags and AdsorbML (Lan et al., npj Comput. Mater. 9, 172, 2023) leaves out:
dissociation, desorption, intercalation and reconstruction of the surface. Two atoms are bonded within a
multiple of the sum of their covalent radii. A surface is compared with that of the start, since no clean
slab is at hand.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

BOND = 1.25  # times the sum of covalent radii: within, two atoms are bonded
CONTACT = 1.5  # times the same: within, an adsorbate touches the surface; beyond, a bond is broken
BELOW, SURFACE, ADSORBATE = 0, 1, 2  # OC20's tags
DISSOCIATED, DESORBED = "dissociated", "desorbed"
INTERCALATED, RECONSTRUCTED = "intercalated", "reconstructed"
KINDS = (DISSOCIATED, DESORBED, INTERCALATED, RECONSTRUCTED)


def has_adsorbate(atoms: Atoms) -> bool:
    """Whether tags tell an adsorbate from what it is on."""
    tags = atoms.get_tags()
    return bool((tags == ADSORBATE).any() and (tags != ADSORBATE).any())


def anomalies(start: Atoms, end: Atoms) -> list[str]:
    """Which of ``KINDS`` happened from one structure to the other; none where all is well.

    - dissociated: two atoms of the adsorbate are bonded at the start and not at the end;
    - desorbed: at the end no atom of it touches anything else;
    - intercalated: at the end one of its atoms is bonded to an atom below the surface, and was not;
    - reconstructed: a bond among the other atoms is there at the start and beyond contact at the end, or
      the other way round.

    Args:
        start, end: the same atoms, with OC20's tags: 0 below the surface, 1 surface, 2 adsorbate.
    """
    tags = start.get_tags()
    adsorbate, others, below = tags == ADSORBATE, tags != ADSORBATE, tags == BELOW
    was, now = bonded(start, BOND), bonded(end, BOND)
    near, far = bonded(start, CONTACT), bonded(end, CONTACT)
    found = {
        DISSOCIATED: _among(was & ~now, adsorbate, adsorbate),
        DESORBED: not _among(far, adsorbate, others),
        INTERCALATED: _among(now & ~was, adsorbate, below),
        RECONSTRUCTED: _among(was & ~far, others, others) or _among(now & ~near, others, others),
    }
    return [kind for kind in KINDS if found[kind]]


def bonded(atoms: Atoms, factor: float) -> NDArray[np.bool_]:
    """Which pairs of atoms are nearer than ``factor`` times the sum of their radii, [n, n]."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=factor))
    pairs = np.zeros((len(atoms), len(atoms)), dtype=bool)
    pairs[first, second] = True
    return pairs


def _among(pairs: NDArray[np.bool_], first: NDArray[np.bool_], second: NDArray[np.bool_]) -> bool:
    return bool(pairs[np.ix_(first, second)].any())
