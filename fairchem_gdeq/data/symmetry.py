"""Frames of a defect in all orientations that leave the host crystal as it is."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.common.registry import registry
from fairchem.core.datasets.ase_datasets import AseDBDataset
from numpy.typing import NDArray


def tetrahedral_group() -> NDArray[np.float64]:
    """The 24 matrices [24, 3, 3] of T_d, the symmetry of a site in the diamond lattice.

    They are the signed permutations with an even number of minus signs.
    """
    signed = itertools.product(
        itertools.permutations(range(3)), itertools.product((1.0, -1.0), repeat=3)
    )
    return np.array(
        [
            np.eye(3)[list(order)] * np.array(signs)[:, None]
            for order, signs in signed
            if np.prod(signs) > 0
        ]
    )


def turn(atoms: ase.Atoms, operation: NDArray[np.float64], site: NDArray[np.float64]) -> ase.Atoms:
    """A copy turned about ``site`` [3] (Angstrom), its forces turned with it, its cell as it was."""
    out: ase.Atoms = atoms.copy()
    out.positions = (atoms.positions - site) @ operation.T + site
    if atoms.calc is not None:
        results = {k: v for k, v in atoms.calc.results.items() if k in ("energy", "forces")}
        if "forces" in results:
            results["forces"] = results["forces"] @ operation.T
        out.calc = SinglePointCalculator(out, **results)
    return out


@registry.register_dataset("site_symmetric")
class SiteSymmetricDataset(AseDBDataset):
    """An ASE database 24 times as long: every row in every orientation of T_d about ``site``.

    For models that read absolute coordinates (ADAPT), which cannot know that a turned defect is the
    same defect. Only right for a cubic cell and a site of the diamond lattice in it. Item i is row
    i mod n in orientation i div n, so that nothing is random.

    Config keys: those of ``AseDBDataset``, and ``site`` [3], Angstrom.
    """

    num_samples: int  # of fairchem's class

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._rows = self.num_samples
        self._site = np.asarray(config["site"], dtype=float)
        self._group = tetrahedral_group()
        self.num_samples = self._rows * len(self._group)
        self.ids = list(range(self.num_samples))

    def get_atoms(self, idx: int) -> ase.Atoms:
        """The turned row; raises ValueError if the cell is not cubic."""
        atoms = super().get_atoms(idx % self._rows)
        edge = atoms.cell[0, 0]
        if not np.allclose(atoms.cell, edge * np.eye(3), atol=1e-6):
            raise ValueError(
                f"{self.config['src']}, row {idx % self._rows}: cell {atoms.cell.tolist()} is not "
                "cubic, so turning the structure would change the crystal; use format: ase_db"
            )
        info = atoms.info
        out = turn(atoms, self._group[idx // self._rows], self._site)
        out.info = info
        return out

    @cached_property
    def _metadata(self) -> dict[str, NDArray[np.int64]]:
        self.num_samples = self._rows  # fairchem compares the file's length with the data set's
        stored = super()._metadata
        self.num_samples = self._rows * len(self._group)
        return {key: np.tile(values, len(self._group)) for key, values in stored.items()}
