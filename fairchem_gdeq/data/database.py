"""ASE databases (ASE-LMDB, ...) as a source of IS2RS rows: the start a row, the target its data."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterable
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import ase
from ase.db.core import Database
from fairchem.core.datasets.ase_datasets import AseDBDataset

from fairchem_gdeq.data import lmdb_file
from fairchem_gdeq.data.reading import repeated_names
from fairchem_gdeq.data.rows import CHECKS, TARGET

SHOWN = 5  # names of files in a message
STAMP = "fairchem_gdeq"  # in the metadata of files that our converter wrote


class _CheckedDatabases(AseDBDataset):
    """fairchem's reader, with the look for truncated files that LMDB does not take."""

    dbs: tuple[Database, ...] = ()  # fairchem closes them at the end, also where it never began

    @staticmethod
    def connect_db(address: str | Path, connect_args: dict[str, Any] | None = None) -> Database:
        if str(address).endswith(".aselmdb"):
            lmdb_file.check(Path(address))
        database: Database = AseDBDataset.connect_db(str(address), connect_args)
        return database

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, for a process that loads data and is no fork: it opens its own."""
        return self.__dict__ | {"dbs": [_unopened(db) for db in self.dbs]}


def _unopened(database: Database) -> Database:
    """The same database; an ASE-LMDB opens its file when it is read."""
    if not hasattr(database, "_env"):
        return database
    same = copy.copy(database)
    same._env = None
    return same


def _found_in(source: str | Path | Iterable[str]) -> str:
    """What there is in the place of databases, in words."""
    places = [source] if isinstance(source, str | Path) else source
    files = [Path(path) for place in places for path in glob(str(place))]
    names = [p.name for f in files for p in (sorted(f.iterdir()) if f.is_dir() else [f])]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"no rows in {shown}" if names else "an empty folder"


class DatabaseSource:
    """Rows of everything that fairchem's ``ase_db`` format takes as ``src``."""

    def __init__(self, config: dict[str, Any], target_key: str | None = TARGET) -> None:
        """Connect.

        Args:
            config: src, connect_args and select_args, as for fairchem's ``ase_db``.
            target_key: of the relaxed positions in ``row.data``.

        Raises:
            DamagedFile: a file is no LMDB or cut short.
            ValueError: no database or no row.
        """
        self.target_key = target_key
        keys = ("src", "connect_args", "select_args")
        chosen = {key: config[key] for key in keys if key in config}
        try:
            self._rows = _CheckedDatabases(chosen)
        except ValueError as error:  # fairchem's, where nothing is left
            raise ValueError(
                f"data set {config['src']}: expected ASE databases (*.aselmdb, *.db) with rows, found "
                f"{_found_in(config['src'])}. Name another folder, or another format"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """File and row id."""
        ends = self._rows._idlen_cumulative
        i = bisect_right(ends, index)
        ids = self._rows.db_ids[i]
        return f"{self._file(i)}, row {ids[index - ends[i]]}"  # ends[i]: counted from behind

    def _file(self, i: int) -> str:
        return str(getattr(self._rows.dbs[i], "filename", self._rows.config["src"]))

    def read(self, index: int) -> ase.Atoms:
        """The row, its data in ``info``; sid is the index where the data has none."""
        atoms: ase.Atoms = self._rows.get_atoms(index)
        return atoms

    @property
    def checked(self) -> bool:
        """Every file says that our converter checked all rows it holds, for all that is refused now."""
        return all(
            stamp.get("checked_rows") == len(ids)
            and stamp.get("checks") == CHECKS
            and (stamp.get("targets") is True or self.target_key is None)
            for ids, stamp in zip(self._rows.db_ids, self._stamps(), strict=True)
        )

    @property
    def checked_less(self) -> bool:
        """Every file was written by our converter, some by a version that checked less."""
        stamps = self._stamps()
        return all(stamps) and any(stamp.get("checks") != CHECKS for stamp in stamps)

    @property
    def repeated_names(self) -> str:
        """What is to be said of names that several rows have, in one file or in several; empty if
        nothing.

        By what our converter noted of each file; the rows are not read.
        """
        stamps = self._stamps()
        if len(stamps) == 1:
            return stamps[0].get("repeated_names") or ""
        # A file that was converted before all names were noted has a sentence on its own at most.
        without = [i for i, stamp in enumerate(stamps) if "names" not in stamp]
        names = chain.from_iterable(stamp.get("names", ()) for stamp in stamps)
        found = [repeated_names(names), *(stamps[i].get("repeated_names") for i in without)]
        if without:
            files = ", ".join(self._file(i) for i in without)
            found.append(
                f"The names in {files} are not compared with those of other files: convert it again "
                "for that, by this version"
            )
        return ". ".join(text for text in found if text)

    def _stamps(self) -> list[dict[str, Any]]:
        found = (getattr(db, "metadata", None) or {} for db in self._rows.dbs)
        return [metadata.get(STAMP, {}) for metadata in found]
