"""What an IS2RS row must be, whatever file it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fairchem_gdeq.data.constraints import held_atoms, wrong_constraint
from fairchem_gdeq.data.names import wrong_name

TARGET = "pos_relaxed"  # where our own rows keep the relaxed positions
SMALLEST_VOLUME = 0.1  # Angstrom^3; also what fairchem asks of partly periodic structures
FARTHEST = 1e4  # Angstrom, from the origin
SAME_PLACE = 1e-2  # Angstrom
SAME_CELL = 1e-3  # Angstrom, between the cells of start and target
# amu. Real atoms have 1 to 300; others may be meant, such as a mass that weighs an atom more in the
# loss. Within these, products with squares of distances are far from the ends of single precision.
LIGHTEST, HEAVIEST = 1e-6, 1e6
CHECKS = 2  # raised where more is refused: files that were checked for less are checked again


class BadRow(ValueError):
    """A row that cannot be used: ``where`` names file and structure, ``reason`` what is wrong."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def check_names(atoms: Atoms, where: str) -> None:
    """Refuse a name (``sid``) that nothing can be called, or a number of its frame (``fid``).

    fairchem joins both to one name, and writes lists of one. A structure without them is called by its
    place.

    Raises:
        BadRow: names ``where``, what was expected and what was found.
    """
    for key in ("sid", "fid"):
        if key not in atoms.info or (key == "fid" and atoms.info[key] is None):
            continue
        name = atoms.info[key]
        if isinstance(name, list | np.ndarray) and np.size(name) == 1:
            atoms.info[key] = np.asarray(name).item()
        if reason := wrong_name(key, atoms.info[key]):
            raise BadRow(where, reason)


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
    _check_finite(_real(atoms.positions, "start positions", where), "start", where)
    if reason := wrong_constraint(atoms):
        raise BadRow(where, reason)
    _check_cell(atoms, where)
    _check_masses(atoms, where)
    _check_free(atoms, where)
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
    target = _real(atoms.info[target_key], target_key, where)
    if target.shape != (n, 3):
        raise BadRow(
            where,
            f"{target_key} has shape {target.shape}, expected ({n}, 3): "
            "start and target must have the same atoms in the same order",
        )
    _check_finite(target, target_key, where)
    _check_places(atoms, target, target_key, where)


def _real(value: object, what: str, where: str, kinds: str = "iuf") -> NDArray[np.float64]:
    """An array of what NumPy counts among the ``kinds`` of numbers, as double precision.

    Raises:
        BadRow: text, truth values, complex numbers, or no array at all.
    """
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of different lengths, tensors
        raise BadRow(where, f"{what}: expected numbers, found none ({error})") from error
    if found.dtype.kind not in kinds:
        raise BadRow(where, f"{what}: expected real numbers, found {_kind(found)}")
    return found.astype(float)


def _kind(array: NDArray[Any]) -> str:
    """What an array holds that is no numbers, in words."""
    words = {"b": "truth values", "c": "complex numbers", "U": "text", "S": "bytes"}
    if array.dtype.kind != "O":
        return words.get(array.dtype.kind, f"NumPy's {array.dtype}")
    return ", ".join(sorted({type(each).__name__ for each in array.flat})) or "nothing"


def _check_finite(positions: NDArray[np.float64], what: str, where: str) -> None:
    if not np.isfinite(positions).all():
        raise BadRow(where, f"{what} positions contain NaN or infinity")


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
    cell = _real(np.asarray(atoms.cell), "the cell", where)
    if not np.isfinite(cell).all():
        raise BadRow(where, "the cell contains NaN or infinity")
    if (longest := float(np.abs(cell).max())) > FARTHEST:
        raise BadRow(
            where, f"the cell reaches to {longest:.3g} Angstrom: expected at most {FARTHEST:g}"
        )
    if atoms.pbc.any() and atoms.cell.volume < SMALLEST_VOLUME:
        raise BadRow(
            where,
            f"periodic, but its cell {cell.round(3).tolist()} has a volume of "
            f"{atoms.cell.volume:.3g} Angstrom^3",
        )


def _check_masses(atoms: Atoms, where: str) -> None:
    found = _real(atoms.info.get("masses", atoms.get_masses()), "masses", where)
    _check_one_each("masses", found, atoms, where)
    within = (found >= LIGHTEST) & (found <= HEAVIEST)  # NaN is not
    if not within.all():
        i = int(np.flatnonzero(~within)[0])
        raise BadRow(
            where,
            f"atom {i} has a mass of {found[i]:.3g} amu: expected positive, finite masses of all "
            f"atoms, from {LIGHTEST:g} to {HEAVIEST:g} amu. Mend it; FixAtoms holds an atom in its place",
        )


def _check_free(atoms: Atoms, where: str) -> None:
    """``info["free"]``, where there is one: a yes or no for each atom."""
    if "free" not in atoms.info:
        return
    found = _real(atoms.info["free"], "free", where, kinds="biuf")
    _check_one_each("free", found, atoms, where)
    other = np.flatnonzero((found != 0) & (found != 1))
    if len(other):
        i = int(other[0])
        raise BadRow(
            where, f"free is {found[i]:g} for atom {i}: expected true or false, or 1 or 0, for each"
        )


def _check_one_each(key: str, found: NDArray[np.float64], atoms: Atoms, where: str) -> None:
    if found.shape != (len(atoms),):
        raise BadRow(where, f"{key} has shape {found.shape}, expected ({len(atoms)},)")


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
    free[held_atoms(atoms)] = False
    return free
