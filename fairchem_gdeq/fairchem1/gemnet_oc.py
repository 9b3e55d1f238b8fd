"""GemNet-OC: up to four graphs, all frozen, with the triplets and quadruplets that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.graphs import (
    CHOSEN,
    OWN_GRAPH,
    EdgeList,
    FrozenGraph,
    Lonely,
    edge_counts,
)
from fairchem_gdeq.frozen.patching import replaced, swapped

STRAIGHT = 1e-3  # sine of the angle between two edges below which they are in line
TAKEN = "taken"  # of ``derived``: for each further graph, the rows of its edges
GRAPHS = 4  # main, atom-to-atom, atom-to-edge, quadruplets: first in what the model derives


class GemNetOC(EdgeList):
    """The largest graph is frozen as a list of edges, the others as choices among its edges.

    ``get_graphs_and_indices`` returns the graphs, symmetrised where the model does so, and index
    sets that depend on the graphs alone. It runs once for a frozen graph; afterwards only
    distances and directions are computed anew.

    The dihedral angle of four atoms of which three are in line is undefined, and the model's forces
    jump there. Slabs as cut from a crystal are full of them, with derivatives of 1e5 that mean
    nothing: within ``STRAIGHT`` of a line the angle counts as constant. Forces are not changed.
    """

    lonely: Lonely = "in company"

    def _edges(self, batch: Batch, widen: float) -> FrozenGraph:
        """Runs the model's own selection; per edge: ``chosen`` [e, k], for each further graph."""
        largest: list[dict[str, Any]] = []
        taken: list[Tensor] = []
        generate, subselect = self.backbone.generate_graph_dict, self.backbone.subselect_graph

        def recorded_graph(*args: Any) -> dict[str, Any]:
            largest.append(generate(*args))
            self._require_neighbours(largest[0]["num_neighbors"], batch)
            return largest[0].copy()

        def recorded_choice(data: Batch, graph: dict[str, Any], *limits: Any) -> dict[str, Any]:
            # The model masks offsets by row, so a fourth column tells which rows it took.
            offset = graph["cell_offset"].double()
            number = torch.arange(len(offset), device=offset.device).double()[:, None]
            out = subselect(data, graph | {"cell_offset": torch.cat([offset, number], 1)}, *limits)
            rows = out["cell_offset"][:, 3].long()
            taken.append(rows)
            out["cell_offset"] = graph["cell_offset"][rows]
            return out

        with (
            swapped(self.backbone, "otf_graph", True),
            replaced(self.backbone, "generate_graph_dict", recorded_graph, OWN_GRAPH),
            swapped(self.backbone, "subselect_graph", recorded_choice),
        ):
            self.backbone.get_graphs_and_indices(batch)
        edges, offsets = largest[0]["edge_index"], largest[0]["cell_offset"]
        # Its offsets belong to vectors from source to target: the other way round.
        counts = edge_counts(edges, batch.batch, len(batch.natoms))
        graph = FrozenGraph(edges, -offsets, counts, derived={TAKEN: taken})
        if taken:
            chosen = torch.zeros(len(offsets), len(taken), dtype=torch.bool, device=edges.device)
            for column, rows in zip(chosen.T, taken, strict=True):
                column[rows] = True
            graph.extra[CHOSEN] = chosen
        return graph

    @contextmanager
    def given(self, graph: FrozenGraph) -> Iterator[None]:
        """As ``EdgeList.given``."""

        def replay(data: Batch) -> tuple[Any, ...]:
            if "all" not in graph.derived:
                with torch.no_grad():
                    graph.derived["all"] = self._derive(graph, data)
            held = graph.derived["all"]
            return *(self._measured(g, data) for g in held[:GRAPHS]), *held[GRAPHS:]

        plain_angles = self.backbone.calculate_quad_angles

        def angles(
            vectors: Tensor, quadruplet_vectors: Tensor, index: dict[str, Any]
        ) -> tuple[Tensor, Tensor, Tensor]:
            out, inner, dihedral = plain_angles(vectors, quadruplet_vectors, index)
            straight = (1 - out**2 < STRAIGHT**2)[index["trip_out_to_quad"]]
            straight = straight | (1 - inner**2 < STRAIGHT**2)[index["trip_in_to_quad"]]
            return out, inner, torch.where(straight, dihedral.detach(), dihedral)

        with ExitStack() as stack:
            enter = stack.enter_context
            enter(replaced(self.backbone, "get_graphs_and_indices", replay, OWN_GRAPH))
            if self.backbone.quad_interaction:
                jumps = "forces jump where three atoms of a quadruplet are in line"
                enter(replaced(self.backbone, "calculate_quad_angles", angles, jumps))
            yield

    def _derive(self, graph: FrozenGraph, data: Batch) -> tuple[Any, ...]:
        """The model's own graphs and index sets, from the frozen edges and choices."""
        if TAKEN not in graph.derived:  # of selected and joined structures
            masks = graph.extra[CHOSEN].T if CHOSEN in graph.extra else ()
            graph.derived[TAKEN] = [mask.nonzero().flatten() for mask in masks]
        choices = iter(graph.derived[TAKEN])
        everything = {
            "edge_index": graph.edge_index,
            "cell_offset": -graph.cell_offsets,
            "num_neighbors": graph.neighbors,
        }
        everything = self._measured(everything, data)

        def frozen_choice(*args: Any) -> dict[str, Any]:
            rows = next(choices)
            out = {key: everything[key][rows] for key in ("cell_offset", "distance", "vector")}
            out["edge_index"] = edges = graph.edge_index[:, rows]
            out["num_neighbors"] = edge_counts(edges, data.batch, len(graph.neighbors))
            return out

        with ExitStack() as stack:
            whole = replaced(
                self.backbone, "generate_graph_dict", lambda *args: everything.copy(), OWN_GRAPH
            )
            stack.enter_context(whole)
            if CHOSEN in graph.extra:
                part = replaced(self.backbone, "subselect_graph", frozen_choice, OWN_GRAPH)
                stack.enter_context(part)
            # The class's function: the instance's is the stand-in that calls this one.
            return type(self.backbone).get_graphs_and_indices(self.backbone, data)

    @staticmethod
    def _measured(graph: dict[str, Any], data: Batch) -> dict[str, Any]:
        """The graph with distances and unit vectors (source to target) at the data's positions."""
        if not graph:
            return {}
        source, target = graph["edge_index"]
        cell = data.cell[data.batch[target]]
        vectors = data.pos[target] - data.pos[source]
        vectors = vectors + torch.einsum("ei,eij->ej", graph["cell_offset"].to(vectors), cell)
        distance = vectors.norm(dim=-1)
        return graph | {"distance": distance, "vector": vectors / distance[:, None]}

    def skin(self, batch: Batch) -> Tensor:
        """NaN [s]: four cutoffs and four ranks choose the neighbours, so no one length tells."""
        return batch.pos.new_full((len(batch.natoms),), torch.nan)
