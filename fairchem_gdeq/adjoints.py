"""Last adjoint of every structure seen: what its next adjoint solve starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairchem_gdeq.relax import StepReport


class Adjoints:
    """Adjoints u [n, 3] by the names of their structures, on the CPU."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    def recall(self, sids: Sequence[object], sizes: list[int], like: Tensor) -> Tensor:
        """Those of a batch [n, 3], in the dtype and on the device of ``like``; zero where unknown."""
        parts = [
            self.known.get(str(sid), torch.zeros(n, 3)) for sid, n in zip(sids, sizes, strict=True)
        ]
        return torch.cat(parts).to(like)

    def keep(
        self, sids: Sequence[object], sizes: list[int], report: StepReport, scale: float = 1.0
    ) -> None:
        """Remember those that solved their system; ``scale``: what the step's loss was multiplied by."""
        parts = report.adjoint.split(sizes)
        for sid, part, good in zip(sids, parts, report.contributing.tolist(), strict=True):
            if good:
                self.known[str(sid)] = part.detach().cpu() / scale
