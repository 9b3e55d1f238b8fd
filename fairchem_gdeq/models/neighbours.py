"""fairchem's radius graph of atoms that may lie outside their cells."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from fairchem.core.graph.compute import generate_graph
from torch import Tensor

from fairchem_gdeq.frozen.cells import unwrapped, wrapped


class GraphSettings(Protocol):
    """What a backbone says of its graph, under fairchem's names.

    Attributes:
        cutoff: Angstrom.
        max_neighbors: of an atom.
        enforce_max_neighbors_strictly: whether the last of equally far ones is left out.
        radius_pbc_version: of fairchem's builder.
    """

    cutoff: float
    max_neighbors: int
    enforce_max_neighbors_strictly: bool
    radius_pbc_version: int


def radius_edges(
    batch: Any, model: GraphSettings, pbc: Tensor, widen: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Edges at the positions of a batch with ``inverse_cell``, as they are given.

    The builder sees atoms wrapped, and the offsets are corrected so that the edge vectors belong to the
    positions as given. Nothing is differentiated.

    Args:
        batch: of fairchem 2.
        model: its settings.
        pbc: [s, 3] bool, along which lattice vectors the model sees a periodic structure.
        widen: is added to the cutoff, Angstrom.

    Returns:
        ``edge_index`` [2, e], source and target, and ``cell_offsets`` [e, 3].
    """
    with torch.no_grad():
        inside, wrap = wrapped(batch, pbc)
        graph = generate_graph(
            inside,
            cutoff=model.cutoff + widen,
            max_neighbors=model.max_neighbors,
            enforce_max_neighbors_strictly=model.enforce_max_neighbors_strictly,
            radius_pbc_version=model.radius_pbc_version,
            pbc=pbc,
        )
        edges: Tensor = graph["edge_index"]
        return edges, unwrapped(graph["cell_offsets"], edges, wrap)
