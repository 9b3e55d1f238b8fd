"""SCN: frozen frames, and the frozen rank of each edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.frames import DRAWN, FramedEdges, block_diagonal, frames, turns
from fairchem_gdeq.fairchem1.graphs import CHOSEN, FrozenGraph
from fairchem_gdeq.frozen.patching import replaced, restored
from fairchem_gdeq.relax.segments import to_device


class SCN(FramedEdges):
    """An edge goes through the message block of its rank among the target's distances.

    The rank is a step function of the positions, hence frozen: as ``rank`` [e]. The model makes its
    own Wigner matrices W_0, reduced and for several rolls, of the frames at freezing; with D the
    rotation of the edge since then, those of now are W_0 D^T.
    """

    def build(self, batch: Batch, widen: float = 0.0) -> FrozenGraph:
        """As ``FramedEdges.build``."""
        graph = super().build(batch, widen)
        if widen == 0:
            with torch.no_grad():
                graph.extra["rank"] = self.backbone._rank_edge_distances(
                    graph.vectors(batch.pos, batch.cell).norm(dim=-1),
                    graph.edge_index,
                    self.backbone.max_num_neighbors,
                )
                bounds = to_device(self.backbone.cutoff_list, graph.extra["rank"].device)
                graph.extra[CHOSEN] = torch.bucketize(graph.extra["rank"], bounds)[:, None]
        return graph

    def order(self, graph: FrozenGraph) -> Tensor:
        """The edges as the model orders them: by message block, and as in the graph within one."""
        if "order" not in graph.derived:
            block = graph.extra[CHOSEN][:, 0]
            count = int((block < len(self.backbone.cutoff_list)).sum())
            graph.derived["order"] = block.argsort(stable=True)[:count]
        return graph.derived["order"]

    @contextmanager
    def _framed(self, graph: FrozenGraph) -> Iterator[None]:
        helpers = self.backbone.sphharm_list
        rank, order = graph.extra["rank"], self.order(graph)
        rest: list[Tensor] = []  # rotations since freezing, of the edges no helper has taken yet

        def frames_at_start(data: Any, edge_index: Tensor, vectors: Tensor) -> Tensor:
            unit = graph.extra["unit"][order].to(vectors)
            rest.append(block_diagonal(turns(unit, vectors, self.backbone.lmax)))
            if "start" not in graph.derived:
                with torch.no_grad():
                    graph.derived["start"] = frames(unit, graph.extra["roll"][order], 1)[1]
            return graph.derived["start"]

        def turned(helper: Any) -> Any:
            plain = helper.InitWignerDMatrix

            def initialise(frames: Tensor) -> None:
                plain(frames)
                left = rest.pop()
                rest.append(left[len(frames) :])
                turn = left[: len(frames), : helper.sphere_basis, : helper.sphere_basis]
                each = turn.repeat_interleave(helper.num_y_rotations, dim=0)
                helper.wigner = helper.wigner @ each.mT
                helper.wigner_inv = turn @ helper.wigner_inv

            return initialise

        with ExitStack() as stack:
            enter = stack.enter_context
            enter(restored(*helpers))
            jumps = "edges change their message blocks, and forces jump"
            enter(replaced(self.backbone, "_rank_edge_distances", lambda *args: rank, jumps))
            enter(replaced(self.backbone, "_init_edge_rot_mat", frames_at_start, DRAWN))
            for helper in helpers:
                enter(replaced(helper, "InitWignerDMatrix", turned(helper), DRAWN))
            yield
