"""IS2RE/IS2RS and S2EF LMDBs of OC20 and OC22: pickled PyG ``Data`` under the keys "0", "1", ...

They may have a record "length". OC22's have no ``tags`` in some versions, and ``nads`` besides.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from fairchem_gdeq.data import lmdb_file
from fairchem_gdeq.data.names import wrong_name
from fairchem_gdeq.data.rows import TARGET, BadRow
from fairchem_gdeq.data.safe_pickle import load

FORCES = ("force", "forces")  # S2EF's name, and that of files from fairchem 1 on
SCALARS = {"y_init": "energy_initial", "y_relaxed": "energy_relaxed", "nads": "nads"}


class LegacySource:
    """Rows of LMDBs, or of all ``*.lmdb`` in folders, in the order of file names and keys.

    A row's ``info`` has sid, the target [n, 3] where there is one, and, where given,
    energy_initial and energy_relaxed (eV) and nads. A row with forces (S2EF) has them as the results
    of a calculator. Edges and distances stored by the old preprocessing are not read. All structures
    are periodic in three directions, as in OC20.
    """

    def __init__(
        self, path: str | Path | list[str | Path], target_key: str | None = TARGET
    ) -> None:
        """Find the records; none is unpickled yet, except "length".

        Raises:
            FileNotFoundError: no such file, or no ``*.lmdb`` in the folder.
            DamagedFile: a file is no LMDB or cut short.
            RefusedPickle: a "length" that asks for something outside the allow-list.
            ValueError: no rows at all.
        """
        self.target_key = target_key
        paths = sorted(map(Path, path)) if isinstance(path, list) else [Path(path)]
        self.files = [file for each in paths for file in lmdb_files(each)]
        self._keys = [_keys(file) for file in self.files]
        self._ends = list(accumulate(map(len, self._keys)))
        if not len(self):
            raise ValueError(f"{path}: no records under the keys 0, 1, ...")

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Path, int]:
        i = bisect_right(self._ends, index)
        return self.files[i], self._keys[i][index - self._ends[i]]

    def where(self, index: int) -> str:
        """File and key."""
        file, key = self._locate(index)
        return f"{file}, key {key}"

    def read(self, index: int) -> Atoms:
        """The start structure with its target.

        Raises:
            BadRow: the record is missing, or is no structure.
            RefusedPickle: it asks for something outside the allow-list.
        """
        file, key = self._locate(index)
        where = self.where(index)
        raw = lmdb_file.get(file, str(key))
        if raw is None:
            raise BadRow(where, "there is no record under this key")
        fields = load(raw, where)
        if not isinstance(fields, dict):
            raise BadRow(where, f"expected a PyG Data, found a {type(fields).__name__}")
        return _atoms(fields, where, f"{file.stem}_{key}", self.target_key)


def lmdb_files(path: Path) -> list[Path]:
    """The file itself, or every ``*.lmdb`` of a folder, sorted."""
    files = sorted(path.glob("*.lmdb")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: no *.lmdb file in this folder")
    return files


def _keys(file: Path) -> list[int]:
    """Keys of the records; without gaps where the file says how many there should be."""
    length = None
    try:
        if (raw := lmdb_file.get(file, "length")) is not None:
            length = load(raw, f"{file}, key length")
        found = lmdb_file.numeric_keys(file) if length is None else None
    except lmdb.Error:
        # A damaged page: take the header's word, so that the rows it hit are named one by one.
        return list(range(lmdb_file.entries(file)))
    if found is not None:
        return found
    if not isinstance(length, int | np.integer) or length < 0:
        raise lmdb_file.DamagedFile(f"{file}, key length: expected a number, found {length!r}")
    return list(range(int(length)))


def _atoms(fields: dict[str, object], where: str, name: str, target_key: str | None) -> Atoms:
    """ASE structure of a legacy row."""
    for key in ("pos", "atomic_numbers", "cell"):
        if key not in fields:
            known = ", ".join(sorted(fields)) or "nothing"
            raise BadRow(where, f"no {key!r} in the Data object (it has: {known})")
    sid = _name(fields.get("sid", name))
    if reason := wrong_name("sid", sid):
        raise BadRow(where, reason)
    where = f"{where}, structure {sid}"
    positions = _numbers(fields, "pos", where)
    n = len(positions) if positions.ndim else 0
    if positions.shape != (n, 3):
        raise BadRow(where, f"pos has shape {positions.shape}, expected (n, 3)")
    numbers = _numbers(fields, "atomic_numbers", where).reshape(-1)  # floats in OC20
    cell = _numbers(fields, "cell", where)
    if cell.size != 9:
        raise BadRow(where, f"cell has shape {cell.shape}, expected (1, 3, 3)")
    counts: dict[str, int] = {
        key: _numbers(fields, key, where).size for key in ("tags", "fixed") if key in fields
    }
    counts["atomic_numbers"] = numbers.size
    if "natoms" in fields:
        counts["natoms"] = int(_numbers(fields, "natoms", where).sum())
    for key, count in counts.items():
        if count != n:
            raise BadRow(where, f"{n} atoms in pos but {count} in {key}")
    if not np.array_equal(numbers, numbers.round()):
        raise BadRow(where, "atomic_numbers are not whole numbers")
    atoms = Atoms(numbers.astype(int), positions, cell=cell.reshape(3, 3), pbc=True)
    if "tags" in fields:
        atoms.set_tags(_numbers(fields, "tags", where).reshape(-1).astype(int))
    if "fixed" in fields:
        fixed = np.flatnonzero(_numbers(fields, "fixed", where))
        if len(fixed):
            atoms.set_constraint(FixAtoms(fixed))
    atoms.info["sid"] = sid
    if target_key is not None and target_key in fields:
        atoms.info[target_key] = _numbers(fields, target_key, where)
    for key, ours in SCALARS.items():
        if key in fields and (value := _numbers(fields, key, where)).size == 1:
            atoms.info[ours] = float(value.reshape(-1)[0])
    for key in FORCES:
        if key in fields:
            forces = _numbers(fields, key, where)
            if forces.shape != (n, 3):
                raise BadRow(where, f"{key} has shape {forces.shape}, expected ({n}, 3)")
            atoms.calc = SinglePointCalculator(atoms, forces=forces)
    return atoms


def _name(sid: object) -> object:
    """A name as text, where it is that or one number, also as an array; else as it was."""
    if isinstance(sid, str):
        return sid
    found = np.asarray(sid)
    return str(found.reshape(-1)[0]) if found.size == 1 and found.dtype.kind in "iufU" else sid


def _numbers(fields: dict[str, object], key: str, where: str) -> NDArray[np.float64]:
    """An attribute as float64, whatever it was stored as."""
    try:
        return np.array(fields[key], dtype=float)
    except (TypeError, ValueError) as error:
        raise BadRow(where, f"{key} holds no numbers ({error})") from error
