"""Batches of structures as fairchem 1 models read them, with nothing else in them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor
from torch_geometric.data import Batch, Data

NODE_KEYS = ("pos", "atomic_numbers", "tags", "fixed")


def plain(batch: Batch) -> Batch:
    """The structures of a batch, without graphs, targets or noise of its data set."""
    sizes = batch.natoms.tolist()
    nodes = {key: batch[key].split(sizes) for key in NODE_KEYS if key in batch}
    names = batch.sid if "sid" in batch else range(len(sizes))
    names = [str(name) for name in (names.tolist() if isinstance(names, Tensor) else names)]
    # fairchem 1 collates [3] per structure to [3 s] and then reads the first three.
    pbc = batch.pbc.reshape(-1, 3) if "pbc" in batch else None
    out = []
    for i in range(len(sizes)):
        # Whole numbers would be collated on the CPU, whatever the rest is on.
        data = Data(natoms=batch.natoms[i : i + 1], sid=names[i])
        data.cell = batch.cell[i].reshape(1, 3, 3)
        if pbc is not None:
            data.pbc = pbc[i : i + 1]
        for key, parts in nodes.items():
            data[key] = parts[i]
        out.append(data)
    return Batch.from_data_list(out)


def with_inverse_cells(batch: Batch, inverse: Tensor) -> Batch:
    """The batch with ``inverse_cell`` [s, 3, 3], which is selected and joined like the rest."""
    parts = batch.to_data_list()
    for data, one in zip(parts, inverse.split(1), strict=True):
        data.inverse_cell = one
    return Batch.from_data_list(parts)


def select_structures(batch: Batch, keep: Tensor) -> Batch:
    """The structures where the mask [s] holds; it may hold nowhere."""
    return _collated(batch.index_select(keep), batch)


def join_structures(batches: Sequence[Batch]) -> Batch:
    """The structures of several batches, one after the other."""
    return _collated([data for batch in batches for data in batch.to_data_list()], batches[0])


def _collated(parts: list[Data], like: Batch) -> Batch:
    """The structures as one batch; of none, which PyG cannot collate, as ``like`` without any."""
    if parts:
        return Batch.from_data_list(parts)
    out = copy.copy(like)
    for key in like.keys():  # noqa: SIM118 (a batch iterates over pairs)
        out[key] = like[key][:0]
    out.ptr = like.ptr[:1]
    out._num_graphs = 0
    return out
