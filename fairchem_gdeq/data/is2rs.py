"""IS2RS rows for fairchem: starts X_0 with the relaxed positions X_gt as a target field."""

from __future__ import annotations

from glob import glob
from pathlib import Path

import ase
import numpy as np
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.ase_datasets import AseDBDataset
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch


@registry.register_dataset("is2rs")
class IS2RSDataset(AseDBDataset):
    """An ASE database (ASE-LMDB, ...) whose rows are starts, with targets in ``row.data``.

    Besides what ``AseDBDataset`` gives, an item has
        pos_relaxed: [n, 3] target positions, Angstrom, from ``row.data[target_key]``;
        mass: [n] amu, from ``row.data["masses"]`` where given, else the standard masses;
        fixed: [n], atoms of FixAtoms constraints and those that ``row.data["free"]`` excludes.

    Config keys: those of ``AseDBDataset``, ``target_key`` (default ``pos_relaxed``) and ``obtain``,
    what to tell somebody who does not have the files.
    """

    def __init__(self, config: dict) -> None:
        self.dbs: list[object] = []  # AseDBDataset closes them, also when this raises
        source = config["src"]
        for path in [source] if isinstance(source, str) else source:
            if not glob(str(path)):
                raise FileNotFoundError(
                    f"data set {path}: no such file or folder (working folder {Path.cwd()}). "
                    f"{config.get('obtain') or ''}"
                )
        super().__init__(config)
        self._convert = self.a2g
        self._target_key = config.get("target_key", "pos_relaxed")
        self.a2g = self._with_target

    def _with_target(self, atoms: ase.Atoms, sid: object) -> AtomicData:
        """AtomicData of a start with its target.

        Raises:
            ValueError: the target is missing, has another shape or is not finite.
        """
        where = f"{self.config['src']}, structure {sid}"
        if self._target_key not in atoms.info:
            known = ", ".join(sorted(map(str, atoms.info))) or "none"
            raise ValueError(
                f"{where}: row.data has no {self._target_key!r} (it has: {known}). Write the relaxed "
                f"positions under that key, or name the right one as target_key in the dataset."
            )
        target = np.asarray(atoms.info[self._target_key], dtype=float)
        if target.shape != (len(atoms), 3):
            raise ValueError(
                f"{where}: {self._target_key} has shape {target.shape}, expected ({len(atoms)}, 3): "
                "start and target must have the same atoms in the same order."
            )
        for name, values in (("start", atoms.positions), (self._target_key, target)):
            if not np.isfinite(values).all():
                raise ValueError(f"{where}: {name} positions contain NaN or infinity.")
        data = self._convert(atoms, sid=str(sid))
        data.pos_relaxed = torch.as_tensor(target, dtype=data.pos.dtype)
        masses = np.asarray(atoms.info.get("masses", atoms.get_masses()), dtype=float)
        data.mass = torch.as_tensor(masses, dtype=data.pos.dtype)
        free = np.asarray(atoms.info.get("free", np.ones(len(atoms))), dtype=bool)
        data.fixed = data.fixed | torch.from_numpy(~free).long()
        return data


def collate(rows: list[AtomicData]) -> AtomicData:
    """One flat batch; fairchem's own collater would ask every row for a ``forces`` label."""
    return atomicdata_list_to_batch(rows)


def collater() -> object:
    """``collate`` itself, for a Hydra ``_target_``."""
    return collate
