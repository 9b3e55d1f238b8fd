"""Positions and cells, for the batches of either fairchem line."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import transformed


def with_positions(batch: Any, positions: Tensor) -> Any:
    """A shallow copy at other positions [n, 3]; models add keys to what they are given."""
    data = copy.copy(batch)
    if hasattr(batch, "__keys__"):  # of fairchem 2, whose copies share the list of their keys
        data.__keys__ = set(batch.__keys__)
    data.pos = positions
    return data


def inverse_cells(batch: Any, pbc: Tensor) -> Tensor:
    """Inverses [s, 3, 3] of the structures' cells, double precision: once for a force field.

    ``batch`` has ``cell`` [s, 3, 3] and ``sid`` [s]; ``pbc`` [s, 3] bool says along which lattice
    vectors the model sees a periodic structure. The others do not count and give zero columns.

    Raises:
        ValueError: a structure is periodic and its cell has no volume.
    """
    cell = batch.cell.double()
    flat = (torch.linalg.det(cell).abs() < 1e-6) & pbc.any(dim=1)
    if bool(flat.any()):
        names = [sid for sid, bad in zip(batch.sid, flat.tolist(), strict=True) if bad]
        raise ValueError(
            f"structures {names} are periodic for this model, but their cells have no volume. Give "
            "them a cell (with vacuum along directions that are not periodic), or pbc = False and a "
            "model that reads it (always_use_pbc: false, use_pbc: false)."
        )
    inverse: Tensor = torch.linalg.pinv(cell * pbc[:, :, None])
    return inverse


def into_cell(batch: Any, pbc: Tensor) -> Tensor:
    """Lattice shifts [n, 3], whole numbers, that bring every atom into its cell.

    ``batch`` has ``pos`` [n, 3], ``batch`` [n] and ``inverse_cell`` [s, 3, 3] of ``inverse_cells``
    for the same ``pbc`` [s, 3].
    """
    inverse = batch.inverse_cell[batch.batch]
    fraction = torch.einsum("ni,nij->nj", batch.pos.double(), inverse)
    return (-fraction.floor() * pbc[batch.batch]).to(batch.pos.dtype)


def wrapped(batch: Any, pbc: Tensor) -> tuple[Any, Tensor]:
    """The batch with every atom in its cell, where fairchem's builders find all neighbours.

    Returns:
        That batch, and the lattice shifts [n, 3] of ``into_cell`` that bring its atoms there.
    """
    wrap = into_cell(batch, pbc)
    return with_positions(batch, batch.pos + lattice_shift(batch, wrap)), wrap


def lattice_shift(batch: Any, whole: Tensor) -> Tensor:
    """Whole lattice vectors per atom [n, 3] in Angstrom."""
    return transformed(whole, batch.cell[batch.batch])


def unwrapped(offsets: Tensor, edge_index: Tensor, wrap: Tensor) -> Tensor:
    """Offsets [e, 3] of edges between wrapped atoms as they are between those as given.

    ``wrap`` [n, 3] as ``wrapped`` returns it.
    """
    source, target = edge_index
    return offsets.to(wrap) + wrap[source] - wrap[target]
