"""What bulk relaxation takes from fairchem 1's loaders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from fairchem.core.datasets import data_list_collater
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from fairchem_gdeq.batching import rows
from fairchem_gdeq.evaluation.scoring import Split

# fairchem's readers of IS2RE/IS2RS LMDBs. Ours opens the same files and checks every row.
LMDB_FORMATS = ("lmdb", "single_point_lmdb", "oc22_lmdb")
CHECKED = "is2rs_lmdb"


def rows_of(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The structures of a loader's batches as batches of one, in order."""
    return rows.rows_of(loader, partial(data_list_collater, otf_graph=True))


def split_of(name: str, loader: DataLoader[Any], budget: int, device: torch.device) -> Split:
    """A loader's structures, to be relaxed ``budget`` atoms at a time."""
    batches: Any = loader.batch_sampler
    return Split(
        name=name,
        rows=partial(rows_of, loader),
        count=len(batches.sampler),
        budget=budget,
        device=device,
    )
