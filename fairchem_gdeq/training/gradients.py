"""Gradients of a step over all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from fairchem_gdeq.training.ranks import ranks


def average_over_ranks(parameters: Iterable[Tensor], count: int) -> list[Tensor]:
    """Turn the gradient of the mean over each rank's structures into that over all ranks' structures.

    Ranks hold different numbers of structures, so that the mean of their means would weigh a
    structure by its company. Diverged structures count: they are zeros in the mean of their rank.

    Args:
        parameters: the same on every rank, in the same order; those that learn get the gradient.
        count: structures of this rank.

    Returns:
        Those of the parameters that learn and have a gradient on some rank. What the forces do not
        depend on, such as an energy head, has none and must not be stepped: even without a gradient,
        weight decay would change it.
    """
    learning = [p for p in parameters if p.requires_grad]
    if ranks() == 1 or not learning:
        return [p for p in learning if p.grad is not None]
    device = learning[0].device
    here = torch.tensor([count, *(p.grad is not None for p in learning)], device=device)
    dist.all_reduce(here)
    total, *hits = here.tolist()
    reached = [p for p, number in zip(learning, hits, strict=True) if number > 0]
    for dtype in dict.fromkeys(p.dtype for p in reached):
        group = [p for p in reached if p.dtype == dtype]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([grad.flatten() for grad in grads]) * (count / total)
        dist.all_reduce(flat)
        for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
            p.grad = part.view_as(p)
    return reached
