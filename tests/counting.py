"""Counts what a stretch of code asks of a GPU: operations launched, and times that the host waits.

Works on any device; copies between host and device are only there to be seen on ``fake`` or ``cuda``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their result, or its size, is needed on the host.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "_linalg_svd", "_linalg_eigh", "lstsq"),
    *("linalg_lstsq", "_linalg_check_errors"),
}
# Nothing is launched for these.
FREE = {"detach", "alias", "expand", "view", "empty", "empty_strided", "empty_like", "lift_fresh"}


def _on_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu"


class Counting(TorchDispatchMode):
    """``with Counting() as counted:`` fills ``counted.waits`` and ``counted.launches``, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        out = func(*args, **kwargs)
        on_device = [x for x in (*tensors, *tree_leaves(out)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in on_device if not _on_host(x)]
        if not on_device:
            return out  # the host's own arithmetic
        views = bool(func._schema.returns) and any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not views and name not in FREE:
            self.launches[name] += 1
        if self._waits(name, args, kwargs, tensors, out):
            self.waits[name] += 1
        return out

    def _waits(self, name: str, args: Any, kwargs: Any, tensors: list, out: Any) -> bool:
        if name in WAITING:
            return True
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name == "_to_copy" and not kwargs.get("non_blocking", False):
            return _on_host(tensors[0]) != _on_host(out)
        if name == "_to_copy":  # to pageable host memory there is no other way
            return _on_host(out) and not _on_host(tensors[0])
        if name == "copy_":
            crosses = _on_host(tensors[0]) != _on_host(tensors[1])
            return crosses and not (len(args) > 2 and args[2] and not _on_host(tensors[0]))
        return False
