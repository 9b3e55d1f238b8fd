"""ASE structures as rows: what is wrong with them, and fairchem's data objects of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from fairchem.core.datasets.atomic_data import AtomicData

from fairchem_gdeq.data.is2rs import collate, set_ours
from fairchem_gdeq.data.reading import BadRows
from fairchem_gdeq.data.rows import TARGET, BadRow, check, check_names, check_pair, free_atoms

# Of ``Atoms.info``: what the potential (charge, spin) and the method (masses, free) read.
READ = ("charge", "spin", "masses", "free")


def as_list(structures: Atoms | Iterable[Atoms]) -> list[Atoms]:
    """Structures as a list; one structure alone is a list of one.

    Raises:
        TypeError: something in it is not an ``Atoms``.
    """
    found = [structures] if isinstance(structures, Atoms) else list(structures)
    for index, atoms in enumerate(found):
        if not isinstance(atoms, Atoms):
            raise TypeError(f"structure {index}: expected ase.Atoms, got {type(atoms).__name__}")
    return found


def require_usable(atoms: Atoms, index: int, target: Atoms | None = None) -> None:
    """Refuse a structure that cannot be relaxed, or a target that is not its own.

    Raises:
        BadRow: names the index and what is wrong.
    """
    where = f"structure {index}"
    check_names(atoms, where)
    check(atoms, where, target_key=None)
    if target is not None:
        check_pair(atoms, target, where)
        if not np.isfinite(target.positions).all():
            raise BadRow(where, "the target's positions contain NaN or infinity")


def require_pairs(what: str, starts: list[Atoms], targets: list[Atoms]) -> None:
    """Refuse lists of starts and targets that do not belong together.

    Raises:
        BadRows: lists every structure that cannot be used.
        ValueError: other numbers of starts and targets, or none.
    """
    if len(starts) != len(targets):
        raise ValueError(f"{what}: {len(starts)} starts and {len(targets)} targets")
    if not starts:
        raise ValueError(f"{what}: no structures")
    bad = []
    for index, (start, target) in enumerate(zip(starts, targets, strict=True)):
        try:
            require_usable(start, index, target)
        except BadRow as error:
            bad.append(error)
    if bad:
        raise BadRows(what, bad, len(starts), "Mend them or leave them out.")


def to_row(
    atoms: Atoms, index: int, dataset: str, dtype: torch.dtype, target: Atoms | None = None
) -> AtomicData:
    """A structure as a batch of one, on the host; ``atoms`` stays as it is.

    Args:
        atoms: the start.
        index: its row.
        dataset: what the potential calls such data.
        dtype: of positions and cell.
        target: the relaxed structure.
    """
    clean = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        tags=atoms.get_tags(),
        masses=atoms.get_masses(),
        constraint=FixAtoms(mask=~free_atoms(atoms)),
        info={key: atoms.info[key] for key in READ if key in atoms.info},
    )
    data = AtomicData.from_ase(
        clean,
        sid=str(atoms.info.get("sid", index)),
        task_name=dataset,
        target_dtype=dtype,
        r_data_keys=["charge", "spin"],
    )
    if target is not None:
        clean.info[TARGET] = target.positions
    set_ours(data, clean, None if target is None else TARGET)
    data.row = torch.tensor([index])
    return collate([data])


def relaxed_copy(atoms: Atoms, positions: np.ndarray) -> Atoms:
    """A copy with its free atoms at positions [n, 3], Angstrom; fixed ones stay to the last digit."""
    out: Atoms = atoms.copy()
    free = free_atoms(atoms)
    out.arrays["positions"][free] = positions[free]
    return out


def packs(structures: Sequence[Atoms], budget: int) -> list[list[int]]:
    """Indices in order, in packs of at most ``budget`` atoms or one structure."""
    found: list[list[int]] = []
    room = 0
    for index, atoms in enumerate(structures):
        if not found or len(atoms) > room:
            found.append([])
            room = budget
        found[-1].append(index)
        room -= len(atoms)
    return found
