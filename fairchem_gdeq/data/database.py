"""ASE databases (ASE-LMDB, ...) as a source of IS2RS rows: the start a row, the target its data."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import ase
from ase.db.core import Database
from fairchem.core.datasets.ase_datasets import AseDBDataset

from fairchem_gdeq.data import lmdb_file
from fairchem_gdeq.data.rows import TARGET

STAMP = "fairchem_gdeq"  # in the metadata of files that our converter wrote


class _CheckedDatabases(AseDBDataset):
    """fairchem's reader, with the look for truncated files that LMDB does not take."""

    dbs: tuple[Database, ...] = ()  # fairchem closes them at the end, also where it never began

    @staticmethod
    def connect_db(address: str | Path, connect_args: dict | None = None) -> Database:
        if str(address).endswith(".aselmdb"):
            lmdb_file.check(Path(address))
        return AseDBDataset.connect_db(str(address), connect_args)


class DatabaseSource:
    """Rows of everything that fairchem's ``ase_db`` format takes as ``src``."""

    def __init__(self, config: dict, target_key: str | None = TARGET) -> None:
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
        self._rows = _CheckedDatabases({key: config[key] for key in keys if key in config})

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """File and row id."""
        ends = self._rows._idlen_cumulative
        i = bisect_right(ends, index)
        ids = self._rows.db_ids[i]
        file = getattr(self._rows.dbs[i], "filename", self._rows.config["src"])
        return f"{file}, row {ids[index - ends[i]]}"  # ends[i] is the end: counted from behind

    def read(self, index: int) -> ase.Atoms:
        """The row, its data in ``info``; sid is the index where the data has none."""
        return self._rows.get_atoms(index)

    @property
    def checked(self) -> bool:
        """Every file says that our converter checked all the rows it holds."""
        return all(
            stamp.get("checked_rows") == len(ids)
            and (stamp.get("targets") is True or self.target_key is None)
            for ids, stamp in zip(self._rows.db_ids, self._stamps(), strict=True)
        )

    @property
    def repeated_names(self) -> str:
        """What our converter found of names that several rows of a file have; empty if nothing.

        Files of one data set are not compared: all their rows would have to be read.
        """
        found = (stamp.get("repeated_names") for stamp in self._stamps())
        return " ".join(str(text) for text in found if text)

    def _stamps(self) -> list[dict[str, object]]:
        found = (getattr(db, "metadata", None) or {} for db in self._rows.dbs)
        return [metadata.get(STAMP, {}) for metadata in found]
