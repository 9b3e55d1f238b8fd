"""The IS2RS metrics as the leaderboard counts them: fairchem's definitions, and the OC20 paper's.

ADwT, MAE and MSE follow ``Evaluator(task="is2rs")`` of fairchem-core 1.10 (and 2.24, the same code)
as its ``run_relaxations`` calls it: free atoms only, and no rigid shift taken out. FbT and AFbT
are those of Chanussot et al., ACS Catal. 11, 6059 (2021); no public code of them is known to us, so
that leaving the last threshold (0.4) out, as in ADwT's, is our choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fairchem_gdeq.relax.segments import segment_sum
from fairchem_gdeq.relax.structures import Structures

ADWT_THRESHOLDS = np.arange(0.01, 0.5, 0.001)  # Angstrom
FBT_THRESHOLD = 0.05  # eV/Angstrom
AFBT_THRESHOLDS = np.arange(0.01, 0.4, 0.001)  # eV/Angstrom


class PositionErrors(NamedTuple):
    """Errors of the free atoms of each structure [s], in double precision.

    Attributes:
        atoms: number of free atoms.
        distance: mean distance from the target, Angstrom; NaN without free atoms, as fairchem's.
        absolute: mean absolute error of a coordinate, Angstrom.
        squared: mean squared error of a coordinate, Angstrom^2.
    """

    atoms: Tensor
    distance: Tensor
    absolute: Tensor
    squared: Tensor


def position_errors(positions: Tensor, target: Tensor, structures: Structures) -> PositionErrors:
    """Errors of positions [n, 3] against target [n, 3], Angstrom.

    Distances are of the image that rounding each periodic fractional coordinate gives: fairchem's,
    which in a skewed cell need not be the shortest one. (fairchem takes every direction for
    periodic; here the structure says which are.) The errors of coordinates are those of the
    plain difference: fairchem takes no minimum image there, so a target that is wrapped otherwise
    than the start counts with its full lattice vector.
    """
    s = structures
    free = s.free.double()
    atoms = segment_sum(free, s.batch, s.count)
    move = (positions.double() - target.double()) * free[:, None]

    def mean(values: Tensor, number: Tensor) -> Tensor:
        return segment_sum(values * free, s.batch, s.count) / number

    return PositionErrors(
        atoms=atoms.long(),
        distance=mean(_rounded_image(move, s).norm(dim=-1), atoms),
        absolute=mean(move.abs().mean(-1), atoms.clamp_min(1)),
        squared=mean((move * move).mean(-1), atoms.clamp_min(1)),
    )


def _rounded_image(move: Tensor, structures: Structures) -> Tensor:
    """Displacements [n, 3] with each periodic fractional coordinate in (-1/2, 1/2]."""
    lattice = structures.cell.double() * structures.pbc.double()[:, :, None]
    fractions = torch.einsum("ni,nij->nj", move, torch.linalg.pinv(lattice)[structures.batch])
    turns = torch.ceil(fractions - 0.5)
    return move - torch.einsum("ni,nij->nj", turns, lattice[structures.batch])


def share_below(values: ArrayLike, thresholds: ArrayLike) -> float:
    """Share of all pairs of a value [s] and a threshold [t] with value < threshold.

    The ADwT of mean distances, the AFbT of largest forces, and at one threshold the FbT. NaN and
    infinity are below nothing.
    """
    found: NDArray[np.bool_] = np.asarray(values, float)[:, None] < np.atleast_1d(thresholds)
    return float(found.mean())
