"""A frozen neighbour graph, and how a fairchem 1 model is made to work on it.

Most models call their own ``generate_graph`` once per forward pass and derive everything else from
its edges; here it returns the frozen edges with distances and vectors at the current positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from fairchem.core.models.base import GraphData, GraphModelMixin
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_gdeq.frozen.cells import unwrapped, with_positions, wrapped
from fairchem_gdeq.frozen.graphs import (
    SKIN_SEARCH,
    edge_rows,
    joined_edges,
    kept_edges,
    nearest_to_cutoff,
)
from fairchem_gdeq.frozen.patching import replaced, swapped
from fairchem_gdeq.relax.segments import segment_count, to_device, transformed

CHOSEN = "chosen"  # of ``extra``: [e, k], what an edge serves: further graphs, message blocks
OWN_GRAPH = "the model works on a graph of its own instead of the frozen one"
Lonely = Literal["nowhere", "in company", "anywhere"]
COUNTS = "counts"  # of ``derived``: ``neighbors``, on the host


@dataclass(frozen=True)
class FrozenGraph:
    """Which pairs are neighbours, in which periodic image; grouped by structure, sorted by target.

    Attributes:
        edge_index: [2, e], source and target.
        cell_offsets: [e, 3], whole lattice vectors added to x_source - x_target.
        neighbors: [s], edges per structure.
        extra: whatever else a family freezes per edge, [e, ...] each.
        derived: what a family works out from the rest, once; not part of the graph.
    """

    edge_index: Tensor
    cell_offsets: Tensor
    neighbors: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def rows(self) -> Tensor:
        """``graphs.edge_rows``: what an edge serves tells it apart too."""
        return edge_rows(self.edge_index, self.cell_offsets, self.extra.get(CHOSEN))

    def shifts(self, cell: Tensor) -> Tensor:
        """Translation [e, 3] of each edge (Angstrom) for cells [s, 3, 3]."""
        edges = len(self.cell_offsets)  # else the device would be asked for the sum
        per_edge = cell.repeat_interleave(self.neighbors, dim=0, output_size=edges)
        return transformed(self.cell_offsets.to(cell), per_edge)

    def vectors(self, positions: Tensor, cell: Tensor) -> Tensor:
        """x_source - x_target + shift [e, 3], Angstrom."""
        source, target = self.edge_index
        return positions[source] - positions[target] + self.shifts(cell)

    def select(self, keep: Tensor, batch: Tensor) -> FrozenGraph:
        """The part of the structures where the mask [s] holds; ``batch`` [n] numbers them.

        With a mask on the host, only the first selection from a graph waits for the device: it asks
        how many edges each structure has.
        """
        mask, device = keep.cpu(), batch.device
        if COUNTS not in self.derived:
            self.derived[COUNTS] = self.neighbors.tolist()
        left = torch.tensor(self.derived[COUNTS])[mask].tolist()
        edges, pairs = kept_edges(self.edge_index, batch, mask, sum(left))
        return FrozenGraph(
            pairs,
            self.cell_offsets[edges],
            self.neighbors[to_device(mask.nonzero().flatten(), device)],
            {key: value[edges] for key, value in self.extra.items()},
            {COUNTS: left},
        )


def edge_counts(edge_index: Tensor, batch: Tensor, structures: int) -> Tensor:
    """Edges [s] of each structure."""
    return segment_count(batch[edge_index[1]], structures)


def join_graphs(graphs: Sequence[FrozenGraph], atoms: Sequence[int]) -> FrozenGraph:
    """The graphs of several batches of ``atoms`` atoms each, one after the other."""
    return FrozenGraph(
        joined_edges([g.edge_index for g in graphs], atoms),
        torch.cat([g.cell_offsets for g in graphs]),
        torch.cat([g.neighbors for g in graphs]),
        {key: torch.cat([g.extra[key] for g in graphs]) for key in graphs[0].extra},
    )


class EdgeList:
    """PaiNN, GemNet-dT, and the base of the other families.

    Both symmetrise the edges and derive triplets, by index alone: what they derive is frozen too.

    Attributes:
        lonely: where the model can evaluate a structure without neighbours.
    """

    lonely: Lonely = "nowhere"
    rotation_equivariant = True

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone: Any = backbone  # of a class that comes without types

    def build(self, batch: Batch, widen: float = 0.0) -> FrozenGraph:
        """The graph the model itself makes at the batch's positions; ``widen`` the cutoff by (A).

        The batch has the ``inverse_cell`` of ``cells.inverse_cells`` for ``periodic``.

        Positions may lie outside the cell, where fairchem 1 misses neighbours: its builder sees
        them wrapped, and the offsets are corrected to belong to the positions as given.

        Raises:
            ValueError: a structure has no neighbours and the model cannot do without.
        """
        with torch.no_grad():
            batch = with_positions(batch, batch.pos.detach())
            inside, wrap = wrapped(batch, self.periodic(batch))
            graph = self._edges(inside, widen)
            offsets = unwrapped(graph.cell_offsets, graph.edge_index, wrap)
            return replace(graph, cell_offsets=offsets)

    def periodic(self, batch: Batch) -> Tensor:
        """Directions [s, 3] in which the model sees periodic structures: all unless they say less."""
        if not self.backbone.use_pbc:
            return torch.zeros_like(batch.cell[:, 0]).bool()
        return batch.pbc if "pbc" in batch else torch.ones_like(batch.cell[:, 0]).bool()

    def _edges(self, batch: Batch, widen: float) -> FrozenGraph:
        """The model's own edges at positions inside the cell, every structure's neighbours checked."""
        cutoff = self.backbone.cutoff + widen
        data = GraphModelMixin.generate_graph(self.backbone, batch, cutoff=cutoff, otf_graph=True)
        neighbors = edge_counts(data.edge_index, batch.batch, len(batch.natoms))
        self._require_neighbours(neighbors, batch)
        return FrozenGraph(data.edge_index, data.cell_offsets, neighbors)

    def _require_neighbours(self, neighbors: Tensor, batch: Batch) -> None:
        """fairchem 1 fails on such structures later, with messages that do not name them."""
        lonely = neighbors == 0
        if self.lonely == "anywhere" or not bool(lonely.any()):
            return
        if self.lonely == "nowhere" or bool(lonely.all()):
            raise ValueError(
                f"structures {[batch.sid[i] for i in lonely.nonzero().flatten().tolist()]} have no "
                f"neighbours within the cutoff of {self.backbone.cutoff} Angstrom, and "
                f"{type(self.backbone).__name__} cannot evaluate them."
            )

    @contextmanager
    def given(self, graph: FrozenGraph) -> Iterator[None]:
        """Inside, the backbone works on this graph instead of its own."""

        def replay(data: Batch, *args: Any, **kwargs: Any) -> Any:
            return self._graph_data(graph, data)

        with (
            replaced(self.backbone, "generate_graph", replay, OWN_GRAPH),
            swapped(self.backbone, "otf_graph", True),
        ):
            yield

    def _graph_data(self, graph: FrozenGraph, data: Batch) -> Any:
        """What ``generate_graph`` returns."""
        vectors = graph.vectors(data.pos, data.cell)
        return GraphData(
            edge_index=graph.edge_index,
            # PaiNN writes into it, which the norm's derivative would not survive.
            edge_distance=vectors.norm(dim=-1).clone(),
            edge_distance_vec=vectors,
            cell_offsets=graph.cell_offsets,
            offset_distances=graph.shifts(data.cell),
            neighbors=graph.neighbors,
            batch_full=data.batch,
            atomic_numbers_full=data.atomic_numbers.long(),
        )

    def skin(self, batch: Batch) -> Tensor:
        """How far (Angstrom) the nearest pair is from the cutoff, per structure [s].

        At most ``SKIN_SEARCH``; NaN where an atom has more neighbours than the model takes, since
        those are chosen by rank.
        """
        wide = self.build(batch, widen=SKIN_SEARCH)
        target, structures = wide.edge_index[1], len(batch.natoms)
        distance = wide.vectors(batch.pos, batch.cell).norm(dim=-1)
        skin = nearest_to_cutoff(distance, self.backbone.cutoff, batch.batch[target], structures)
        full = torch.bincount(target, minlength=len(batch.pos)) >= self.backbone.max_neighbors
        ranked = torch.bincount(batch.batch[full], minlength=structures) > 0
        return torch.where(ranked, torch.nan, skin)
