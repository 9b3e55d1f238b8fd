"""A structure at its start, where models relax it and at its target, laid over each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.evaluation.task import Batch, labels_of
from fairchem_gdeq.relax.loss import free_displacement
from fairchem_gdeq.relax.operator import Operator

Ends = dict[int, Tensor]  # relaxed positions [n, 3] on the host, Angstrom, by row


@dataclass(frozen=True)
class Overlay:
    """One structure in several places. All of them lie in the frame of the target.

    Attributes:
        label: which structure it is.
        numbers: [n] atomic numbers.
        cell: [3, 3] lattice vectors as rows, Angstrom; those of directions that are not periodic are 0.
        free: [n] bool, atoms that may move.
        target: [n, 3], Angstrom.
        places: [n, 3] each, Angstrom, by name: the target and the displacement that Delta Q is of, so by
            the nearest image and without the rigid shift. Fixed atoms stand where the target has them.
    """

    label: Label
    numbers: NDArray[np.int64]
    cell: NDArray[np.float64]
    free: NDArray[np.bool_]
    target: NDArray[np.float64]
    places: dict[str, NDArray[np.float64]]


def overlay(row: Batch, positions: Mapping[str, Tensor], operator: Operator) -> Overlay:
    """One structure.

    Args:
        row: a batch of it alone, on the host, with a target.
        positions: [n, 3] each, Angstrom, by the names of the places.
        operator: of the structure, on the host; says what rigid motion is taken out.
    """
    s, target = operator.structures.double(), row.pos_relaxed.double()
    places = {
        name: (target + free_displacement(x.double(), target, s, operator.pin)).numpy()
        for name, x in positions.items()
        if bool(torch.isfinite(x).all())
    }
    (label,) = labels_of(row)
    return Overlay(
        label,
        row.atomic_numbers.numpy(),
        (s.cell[0] * s.pbc[0, :, None]).numpy(),
        s.free.numpy(),
        target.numpy(),
        places,
    )
