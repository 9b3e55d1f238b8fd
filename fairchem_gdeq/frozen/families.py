"""Which family a backbone belongs to, in the table of either fairchem line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

G = TypeVar("G")


def family_of(
    backbone: nn.Module, families: Mapping[type[nn.Module], Callable[[nn.Module], G]]
) -> G | None:
    """How a backbone's neighbours are frozen, by the nearest of its classes; None if none is there."""
    for kind in type(backbone).__mro__:
        if kind in families:
            return families[kind](backbone)
    return None
