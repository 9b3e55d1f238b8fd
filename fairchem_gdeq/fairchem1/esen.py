"""fairchem 1's eSEN, with its DeNS variant: frozen frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.frames import DRAWN, FramedEdges
from fairchem_gdeq.fairchem1.graphs import FrozenGraph, Lonely
from fairchem_gdeq.frozen.patching import replaced


class ESEN(FramedEdges):
    """The backbone asks ``get_rotmat_and_wigner`` for its matrices and passes them to its blocks."""

    lonely: Lonely = "anywhere"

    def _graph_data(self, graph: FrozenGraph, data: Batch) -> dict[str, Any]:
        found = super()._graph_data(graph, data)
        return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}

    @contextmanager
    def _framed(self, graph: FrozenGraph) -> Iterator[None]:
        def matrices(vectors: Tensor) -> tuple[None, Tensor, Tensor]:
            wigner = self.wigner(graph, vectors, self.backbone.lmax)
            return None, wigner, wigner.mT

        with replaced(self.backbone, "get_rotmat_and_wigner", matrices, DRAWN):
            yield
