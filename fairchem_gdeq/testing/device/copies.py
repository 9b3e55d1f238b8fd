"""Copies to the CPU for which nobody has waited: what is in them is wrong until somebody does."""

from __future__ import annotations

import torch
from torch import Tensor

_underway: list[tuple[Tensor, Tensor]] = []  # tensors that are not filled yet, and their values


def leave(copied: Tensor) -> None:
    """Take the values out of a copy: NaN, the least number or the opposite, until ``arrive``."""
    _underway.append((copied, copied.clone()))
    if copied.dtype == torch.bool:
        copied.logical_not_()
    else:
        copied.fill_(torch.nan if copied.is_floating_point() else torch.iinfo(copied.dtype).min)


def arrive() -> None:
    """The device has done all that it was asked for."""
    while _underway:
        copied, values = _underway.pop()
        copied.data.copy_(values)
