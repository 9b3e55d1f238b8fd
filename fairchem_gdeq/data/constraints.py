"""ASE's constraints as relaxations here know them: an atom is fixed, or it is free."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from numpy.typing import NDArray


def held_by(constraint: object) -> NDArray[np.int_] | None:
    """Indices of the atoms that a constraint keeps in their places; None if it does anything else.

    In all three directions, ``FixCartesian`` and ``FixScaled`` are a ``FixAtoms``; in none, nothing:
    ASE's reader of extended XYZ makes one of either for every atom.
    """
    held: NDArray[np.int_] | None = None
    if isinstance(constraint, FixAtoms):
        held = constraint.index
    elif isinstance(constraint, FixCartesian | FixScaled) and len(set(constraint.mask)) == 1:
        held = constraint.index if constraint.mask.all() else constraint.index[:0]
    return held


def held_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Atoms [n] that constraints keep in their places; what ``wrong_constraint`` names is passed over."""
    held = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if (indices := held_by(constraint)) is not None:
            held[indices] = True
    return held


def wrong_constraint(atoms: Atoms) -> str | None:
    """A sentence on the first constraint that cannot be kept, without its end; None if there is none."""
    n = len(atoms)
    for constraint in atoms.constraints:
        held = held_by(constraint)
        if held is None:
            kind = type(constraint).__name__
            if isinstance(constraint, FixCartesian | FixScaled):
                kind += " (of some directions)"
            return (
                f"it has a {kind} constraint, which would be dropped: only FixAtoms can be kept. Use "
                "FixAtoms, or take it off with atoms.set_constraint()"
            )
        if len(beyond := held[(held < -n) | (held >= n)]):
            return (
                f"its {type(constraint).__name__} holds atom {beyond[0]}, and it has {n} atoms: "
                f"expected indices from 0 to {n - 1}"
            )
    return None


def use_fix_atoms(atoms: Atoms) -> None:
    """Change constraints that are a ``FixAtoms`` in effect to one, the only one that fairchem reads."""
    if all(isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        return
    held = held_atoms(atoms)
    atoms.set_constraint(FixAtoms(mask=held) if held.any() else None)
