"""Labelled frames as both lines of fairchem read them, less what they would drop in silence."""

from __future__ import annotations

from typing import Any

from ase import Atoms
from fairchem.core.datasets.ase_datasets import apply_one_tags

from fairchem_gdeq.data.constraints import use_fix_atoms, wrong_constraint
from fairchem_gdeq.data.rows import BadRow, check_names


def for_fairchem(atoms: Atoms, **tags: Any) -> Atoms:
    """The ``atoms_transform`` of a data set of frames: fairchem's own, and fixed atoms as it knows them.

    Args:
        atoms: a frame, changed in place.
        tags: of fairchem's ``apply_one_tags``.

    Raises:
        BadRow: it has constraints that fairchem does not read, or a name that is none.
    """
    check_names(atoms, "a frame")
    if reason := wrong_constraint(atoms):
        sid = atoms.info.get("sid")
        raise BadRow("a frame without a name" if sid is None else f"structure {sid}", reason)
    use_fix_atoms(atoms)
    out: Atoms = apply_one_tags(atoms, **tags)
    return out
