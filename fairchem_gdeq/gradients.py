"""Gradients of a step over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fairchem_gdeq.ranks import ranks


def reached(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those of the parameters that learn and have a gradient on some rank.

    What the forces do not depend on, such as an energy head, has none and must not be stepped: even
    without a gradient, weight decay would change it.
    """
    learning = [p for p in parameters if p.requires_grad]
    if ranks() == 1 or not learning:
        return [p for p in learning if p.grad is not None]
    hit = torch.tensor([float(p.grad is not None) for p in learning], device=learning[0].device)
    dist.all_reduce(hit)
    return [p for p, number in zip(learning, hit.tolist(), strict=True) if number > 0]


def average_over_ranks(parameters: Sequence[Tensor]) -> None:
    """Replace every gradient by its mean over the ranks; a missing one counts as zero."""
    if ranks() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
        p.grad /= ranks()
