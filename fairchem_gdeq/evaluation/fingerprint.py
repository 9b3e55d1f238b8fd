"""A few digits for all that decides where structures end."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

OF_NOW = ("training", "device")  # a module's mode, and where it was last
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


def fingerprint(*parts: Any) -> str:
    """Twelve digits that change with what the parts hold.

    Args:
        parts: modules, by their weights, buffers and plain attributes, such as a cutoff; dataclasses,
            containers and tensors, by what is in them; anything else by what it prints as, or where that
            says nothing, by its plain attributes.
    """
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:12]


@cache
def code() -> str:
    """Twelve digits that change with this package's source and with torch's and fairchem's version."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    digest.update(f"{version('torch')} {version('fairchem-core')}".encode())
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _pieces(value: Any) -> Iterator[bytes]:
    """What a value holds, kinds and names included, in one order."""
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if isinstance(value, Tensor):
        yield f"{value.dtype} {list(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, nn.Module):
        for name, module in value.named_modules():
            yield f"{name}: {type(module).__qualname__}".encode()
            yield from _pieces(_attributes(module))
        yield from _pieces(dict(value.state_dict()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _pieces({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield repr(key).encode()
            yield from _pieces(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _pieces(each)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value))).encode()  # their order differs from process to process
    elif isinstance(value, partial):
        yield from _pieces([value.func, value.args, value.keywords])
    elif isinstance(value, FunctionType | type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif " at 0x" not in (text := repr(value)):  # where it is in memory is not what it is
        yield text.encode()
    elif hasattr(value, "__dict__"):
        yield from _pieces(_attributes(value))


def _attributes(made: Any) -> dict[str, Any]:
    """Plain ones that a module or an object is made with, not what it keeps for itself or is just now."""
    return {
        name: value
        for name, value in sorted(vars(made).items())
        if _is_plain(value) and not name.startswith("_") and name not in OF_NOW
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(each, PLAIN) for each in value)
    return isinstance(value, PLAIN)
