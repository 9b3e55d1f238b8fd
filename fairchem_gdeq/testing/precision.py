"""Double precision in code that writes out single precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode


class _Double(TorchFunctionMode):
    """Float32 that is written out in fairchem's code becomes float64.

    EScAIP, AllScAIP and GemNet-OC round their features to float32 in the middle of the forward pass,
    and fairchem 1 its lattice shifts, which limits any difference quotient to about 1e-2. Nothing
    else is changed.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {key: widen(value) for key, value in (kwargs or {}).items()}
        return func(*map(widen, args), **kwargs)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Everything inside is computed in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)
