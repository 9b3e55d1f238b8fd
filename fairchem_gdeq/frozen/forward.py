"""How force fields evaluate a model: its parts, its mode, and the precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def backbone_of(model: nn.Module) -> nn.Module:
    """The part that chooses neighbours: the backbone of a model with heads, or the model itself."""
    return getattr(model, "backbone", model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, stochastic depth and the like; given back afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Without autocast inside, whatever the caller has switched on.

    A fixed point, and the linear system at it, cannot be solved to a useful accuracy with forces of
    half precision.
    """
    return torch.autocast(device.type, enabled=False)
