"""What our code asks PyTorch for during an evaluation: waits for the device, constants made anew."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairchem_gdeq.testing.device.rules import WAITING

OURS = str(Path(__file__).parents[1] / "fairchem_gdeq")
TESTING = str(Path(OURS) / "testing")  # the pretended device itself
THEIRS = str(Path("fairchem") / "core")
LINEAR_ALGEBRA = {"linalg_det", "_linalg_det", "linalg_pinv", "_linalg_svd", "linalg_inv_ex"}


def is_ours() -> bool:
    """Whether the innermost frame of either package is of this one."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(OURS) and not file.startswith(TESTING):
            return True
        if THEIRS in file:
            return False
        frame = frame.f_back
    return False


class Census(TorchDispatchMode):
    """Counts of ``waits``, ``algebra`` (of small matrices) and ``constants`` (made of numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.algebra: Counter[str] = Counter()
        self.constants = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        if is_ours():
            masks = name in ("index", "index_put_") and any(
                isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
            )
            unknown = name == "repeat_interleave" and kwargs.get("output_size") is None
            if name in WAITING or masks or unknown:
                self.waits[name] += 1
            if name in LINEAR_ALGEBRA:
                self.algebra[name] += 1
            self.constants += name == "lift_fresh"
        return func(*args, **kwargs)


@contextmanager
def census() -> Iterator[Census]:
    """Counts what our code does inside."""
    counted, tolist = Census(), torch.Tensor.tolist

    def counting(tensor: torch.Tensor) -> Any:
        if is_ours():
            counted.waits["tolist"] += 1
        return tolist(tensor)

    torch.Tensor.tolist = counting  # type: ignore[method-assign]
    try:
        with counted:
            yield counted
    finally:
        torch.Tensor.tolist = tolist  # type: ignore[method-assign]
