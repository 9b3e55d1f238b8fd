"""EquiformerV2, with its DeNS variant and its old form in one piece: frozen frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from fairchem_gdeq.fairchem1.frames import DRAWN, FramedEdges
from fairchem_gdeq.fairchem1.graphs import FrozenGraph
from fairchem_gdeq.frozen.patching import replaced, restored


class EquiformerV2(FramedEdges):
    """The backbone asks ``_init_edge_rot_mat`` for frames and hands them to ``set_wigner``."""

    @contextmanager
    def _framed(self, graph: FrozenGraph) -> Iterator[None]:
        rotations = list(self.backbone.SO3_rotation)

        def setter(rotation: Any) -> Any:
            def set_wigner(vectors: Tensor) -> None:
                rotation.device, rotation.dtype = vectors.device, vectors.dtype
                rotation.wigner = self.wigner(graph, vectors, rotation.lmax)
                rotation.wigner_inv = rotation.wigner.mT

            return set_wigner

        def vectors_for_frames(data: Any, edge_index: Tensor, vectors: Tensor) -> Tensor:
            return vectors

        with ExitStack() as stack:
            stack.enter_context(restored(*rotations))
            enter = stack.enter_context
            enter(replaced(self.backbone, "_init_edge_rot_mat", vectors_for_frames, DRAWN))
            for rotation in rotations:
                enter(replaced(rotation, "set_wigner", setter(rotation), DRAWN))
            yield
