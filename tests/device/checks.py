"""Results on a device against the same on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

CPU = torch.device("cpu")


def parts(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and numbers in a result, each with its place."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from parts(each, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from parts(each, f"{where}[{i}]")
    else:
        yield where, value


def assert_same(found: Any, expected: Any, rtol: float, atol: float) -> None:
    """Tensors, numbers and containers of them; NaN equals NaN, and numbers of steps are exact."""
    for (where, mine), (other, its) in zip(parts(found), parts(expected), strict=True):
        assert where == other
        if isinstance(its, Tensor):
            torch.testing.assert_close(
                *(mine.detach().cpu(), its.detach().cpu()),
                **{"rtol": rtol, "atol": atol, "equal_nan": True},
                msg=lambda text, where=where: f"{where or 'result'}: {text}",
            )
        elif isinstance(its, float):
            assert mine == pytest.approx(its, rel=rtol, abs=atol, nan_ok=True), where
        else:
            assert mine == its, where


def assert_on(device: torch.device, value: Any) -> None:
    """Every tensor in a result is on the device."""
    for where, each in parts(value):
        if isinstance(each, Tensor):
            assert each.device.type == device.type, f"{where} is on {each.device}"
