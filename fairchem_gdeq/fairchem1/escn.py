"""eSCN: frozen frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairchem_gdeq.fairchem1.frames import DRAWN, FramedEdges
from fairchem_gdeq.fairchem1.graphs import FrozenGraph
from fairchem_gdeq.frozen.patching import called, replaced, restored

ROTATIONS = 4  # position of the rotations among the arguments of a layer block


class ESCN(FramedEdges):
    """The backbone makes new rotation modules in every forward pass and detaches their matrices.

    They are the same objects for all layers, so it is enough to set the matrices before the first.
    """

    @contextmanager
    def _framed(self, graph: FrozenGraph) -> Iterator[None]:
        current: list[Tensor] = []

        def no_frames(data: Any, edge_index: Tensor, vectors: Tensor) -> Tensor:
            current.append(vectors)
            return torch.eye(3, dtype=vectors.dtype, device=vectors.device).expand(
                len(vectors), 3, 3
            )

        def set_wigner(block: nn.Module, arguments: tuple[Any, ...]) -> None:
            vectors = current.pop()
            for rotation in arguments[ROTATIONS]:
                rotation.wigner = self.wigner(graph, vectors, rotation.lmax)
                rotation.wigner_inv = rotation.wigner.mT

        first = self.backbone.layer_blocks[0]
        with (
            restored(self.backbone),
            replaced(self.backbone, "_init_edge_rot_mat", no_frames, DRAWN),
            called(set_wigner, f"{type(first).__name__}.forward", DRAWN) as before,
            first.register_forward_pre_hook(before),
        ):
            yield
