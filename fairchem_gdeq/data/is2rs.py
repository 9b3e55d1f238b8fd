"""IS2RS rows for fairchem: starts X_0 with the relaxed positions X_gt as a target field."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.ase_datasets import AseAtomsDataset
from numpy.typing import NDArray
from tqdm import tqdm

from fairchem_gdeq.data.database import DatabaseSource
from fairchem_gdeq.data.folds import Fold
from fairchem_gdeq.data.legacy import LegacySource
from fairchem_gdeq.data.parts import folders_of
from fairchem_gdeq.data.reading import BadRows, Source, listed, read_row, repeated_names, scan
from fairchem_gdeq.data.rows import TARGET, free_atoms, masses
from fairchem_gdeq.data.trajectories import TrajectorySource

if TYPE_CHECKING:
    from fairchem.core.datasets.atomic_data import AtomicData

LONG = 2000  # rows from which on a scan shows its progress
METADATA = "Write it anew, or remove it: atoms are counted where there is none"
ADVICE = "Mend them, or set skip_bad: true in the dataset to leave them out."


class SourceDataset(AseAtomsDataset):
    """Rows of a source as fairchem's data objects; all of them are checked before the first is used.

    An item is fairchem 2's ``AtomicData`` or fairchem 1's PyG ``Data``. Besides what their ASE datasets
    give it has:

    - ``pos``: [n, 3], Angstrom, as they are in the file, not wrapped into the cell;
    - ``pos_relaxed``: [n, 3] target positions, Angstrom;
    - ``mass``: [n] amu, from the row's ``masses`` where given, else the standard masses;
    - ``fixed``: [n], atoms of FixAtoms constraints and those that the row's ``free`` excludes;
    - ``row``: [1] int64, the row's place in the source, which tells it from others of the same name.

    Config keys of all formats: ``src``, a path, a pattern of folders such as ``train/part_*``, or a list
    of those and of such lists; ``target_key``
    (default ``pos_relaxed``; null for starts without targets); ``skip_bad`` (default false: a data set
    with bad rows stops the run with the list of them; true: they are left out and counted in the
    log); ``hint``, what to tell somebody who does not have the files; ``fold``, the settings of a
    ``folds.Fold``, whose rows alone are used; and of fairchem: ``a2g_args``, ``transforms``,
    ``key_mapping``.
    """

    # Of fairchem's class; what turns ASE structures into data objects differs between its lines.
    a2g: Any
    num_samples: int

    def __init__(self, config: dict[str, Any]) -> None:
        """Open and check.

        Raises:
            FileNotFoundError: ``src`` is not there, or a part of it.
            BadRows: some rows cannot be used, and ``skip_bad`` is not set; or none can.
            RefusedPickle: the length in a legacy file is a call of something.
            ValueError: there is no such fold.
        """
        paths = _paths(config["src"])
        for path in paths:
            if not glob(path):
                raise FileNotFoundError(
                    f"data set {path}: no such file or folder (working folder {Path.cwd()}). "
                    f"{config.get('hint') or ''}"
                )
        config = config | {"src": paths if len(paths) > 1 else paths[0]}
        self._target_key = config.get("target_key", TARGET)
        self.first_row = 0  # number of row 0; more where data sets are joined to one
        super().__init__(config)
        if callable(self.a2g):  # fairchem 2: a function
            self._convert, self.a2g = self.a2g, self._with_target
        else:  # fairchem 1: an AtomsToGraphs, which is asked for other things too
            self._convert, self.a2g.convert = self.a2g.convert, self._with_target

    @abstractmethod
    def _open(self, config: dict[str, Any]) -> Source:
        """The source that ``config`` describes."""

    def _load_dataset_get_ids(self, config: dict[str, Any]) -> list[int]:
        """Numbers of the good rows; fairchem 2 calls ``get_atoms`` with these, fairchem 1 with their ids.

        Both are therefore the same here.
        """
        self._rows = self._good_rows(config)
        return list(range(len(self._rows)))

    def _good_rows(self, config: dict[str, Any]) -> list[int]:
        """Their indices in the source."""
        self.source = self._open(config)
        self._natoms: NDArray[np.int64] | None = None
        indices = range(len(self.source))
        name, fold = str(config["src"]), config.get("fold")
        if fold is None and isinstance(self.source, DatabaseSource) and self.source.checked:
            if self.source.repeated_names:
                logging.warning(f"data set {name}: {self.source.repeated_names}")
            return list(indices)
        if fold is None and isinstance(self.source, DatabaseSource) and self.source.checked_less:
            logging.info(
                f"data set {name} was converted by a version that checked less, so its rows are "
                "looked at whenever it is opened. Convert it again, by this version, and they are not"
            )
        shown = tqdm(indices, desc=f"checking {name}", disable=len(indices) < LONG)
        found = scan(self.source, shown)
        if found.bad and (not config.get("skip_bad") or not found.good):
            error = BadRows(name, found.bad, len(indices), ADVICE)
            logging.error(error)  # Hydra prints the exception too, but as one line
            raise error
        if found.bad:
            logging.warning(
                f"data set {name}: {len(found.bad)} of {len(indices)} rows are bad and left out:\n"
                f"{listed(found.bad)}"
            )
        if text := repeated_names(found.sids):
            logging.warning(f"data set {name}: {text}")
        used = range(len(found.good)) if fold is None else Fold(**fold).choose(found.sids)
        self._natoms = np.array([found.natoms[i] for i in used])
        return [found.good[i] for i in used]

    @cached_property
    def _metadata(self) -> dict[str, NDArray[Any]]:
        """Atom counts as found, and what else ``metadata.npz`` says of the rows that are used."""
        if self._natoms is None:
            return self._stored_metadata()
        folders = [path if path.is_dir() else path.parent for path in self.paths]
        stored = any((folder / "metadata.npz").is_file() for folder in folders)
        if not stored and not self.config.get("metadata_path"):
            return {"natoms": self._natoms}
        # fairchem compares with the number of rows, which must be that of the files for once.
        self.num_samples = len(self.source)
        known = {key: values[self._rows] for key, values in self._stored_metadata().items()}
        self.num_samples = len(self._rows)
        if len(other := np.flatnonzero(known["natoms"] != self._natoms)):
            first = other[0]
            where = self.source.where(self._rows[first])
            raise ValueError(
                f"{self._metadata_files}: natoms is {known['natoms'][first]} for {where}, expected "
                f"{self._natoms[first]}, as that row has. {METADATA}"
            )
        return known | {"natoms": self._natoms}

    def _stored_metadata(self) -> dict[str, NDArray[Any]]:
        """What ``metadata.npz`` says, as fairchem reads it.

        Raises:
            ValueError: it cannot be read, or is of another number of rows.
        """
        try:
            found: dict[str, NDArray[Any]] = super()._metadata
        except Exception as error:  # whatever NumPy and fairchem make of damaged or other files
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{self._metadata_files}: expected natoms, an array of the {self.num_samples} rows' "
                f"numbers of atoms, found what cannot be used ({reason}). {METADATA}"
            ) from error
        return found

    @property
    def _metadata_files(self) -> str:
        """Where they are, for a message."""
        given = self.config.get("metadata_path")
        folders = [path if path.is_dir() else path.parent for path in self.paths]
        return str(given or ", ".join(str(folder / "metadata.npz") for folder in folders))

    def __getitem__(self, idx: Any) -> Any:
        """An item, or for a slice a list of them."""
        item = super().__getitem__(idx)
        if not isinstance(idx, slice):
            item.row = torch.tensor([self.first_row + self._rows[idx]])
        return item

    def get_atoms(self, idx: int) -> ase.Atoms:
        """The start structure of an item, with its target in ``info``."""
        atoms = read_row(self.source, self._rows[idx])
        atoms.info.setdefault("sid", self._rows[idx])
        return atoms

    def _with_target(self, atoms: ase.Atoms, sid: object) -> Any:
        """A start with its target."""
        data = self._convert(atoms, sid=str(sid))
        set_ours(data, atoms, self.source.target_key)
        return data


def _paths(source: object) -> list[str]:
    """Those of a path or a pattern of folders, or of a list of those and of such lists."""
    if isinstance(source, str | Path):
        return folders_of(str(source))
    assert isinstance(source, Iterable)
    return [path for each in source for path in _paths(each)]


def set_ours(data: Any, atoms: ase.Atoms, target_key: str | None) -> None:
    """Give fairchem's data object of a structure what relaxations need besides, see ``SourceDataset``.

    Args:
        data: fairchem 2's ``AtomicData`` or fairchem 1's PyG ``Data``, changed in place.
        atoms: what it was made of; the target [n, 3] (Angstrom) is in its ``info``.
        target_key: under this key; None: there is no target.
    """
    # fairchem wraps positions into the cell, but not targets, from which they would then be whole
    # cells away. Our graphs take atoms wherever they are, so they stay as given.
    data.pos = torch.as_tensor(atoms.positions, dtype=data.pos.dtype)
    data.pbc = data.pbc.view(1, 3)  # fairchem 1 has [3], of which a batch would be one long row
    if target_key is not None:
        target = np.asarray(atoms.info[target_key], dtype=float)
        data.pos_relaxed = torch.as_tensor(target, dtype=data.pos.dtype)
    data.mass = torch.as_tensor(masses(atoms), dtype=data.pos.dtype)
    data.fixed = torch.from_numpy(~free_atoms(atoms)).long()


@registry.register_dataset("is2rs")
class IS2RSDataset(SourceDataset):
    """An ASE database (ASE-LMDB, ...) whose rows are starts, with targets in ``row.data``.

    Config keys besides those of ``SourceDataset``: ``connect_args`` and ``select_args`` of
    fairchem's ``ase_db``. Files that our converter wrote were checked then, and are not again.
    """

    def _open(self, config: dict[str, Any]) -> Source:
        return DatabaseSource(config, self._target_key)


@registry.register_dataset("is2rs_lmdb")
class LegacyDataset(SourceDataset):
    """An IS2RE/IS2RS LMDB of OC20 or OC22, a folder of them, or a list of those."""

    def _open(self, config: dict[str, Any]) -> Source:
        return LegacySource(config["src"], self._target_key)


@registry.register_dataset("is2rs_trajectories")
class TrajectoryDataset(SourceDataset):
    """Folders of relaxations that ASE can read. ``pattern`` (default ``**/*``) picks the files."""

    def _open(self, config: dict[str, Any]) -> Source:
        pattern = config.get("pattern", "**/*")
        return TrajectorySource(config["src"], self._target_key, pattern)


def collate(rows: list[AtomicData]) -> AtomicData:
    """One flat batch of fairchem 2; its own collater would ask every row for a ``forces`` label."""
    from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch  # not in fairchem 1

    return atomicdata_list_to_batch(rows)


def collater() -> object:
    """``collate`` itself, for a Hydra ``_target_``."""
    return collate
