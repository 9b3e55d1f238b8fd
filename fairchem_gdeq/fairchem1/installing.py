"""Changing one instance from outside for the length of one evaluation, and leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fairchem_gdeq.frozen.patching import called


@contextmanager
def installed(owner: object, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside; the class and other instances are not touched."""
    own, before = name in vars(owner), vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if own:
            vars(owner)[name] = before
        else:
            vars(owner).pop(name, None)


@contextmanager
def replaced(
    owner: object, name: str, function: Callable[..., Any], otherwise: str
) -> Iterator[None]:
    """A method of one instance replaced inside, which fairchem must call (``standins.called``)."""
    place = f"{type(owner).__name__}.{name}"
    with called(function, place, otherwise) as standin, installed(owner, name, standin):
        yield


@contextmanager
def restored(*owners: object) -> Iterator[None]:
    """Attributes and submodules that a forward pass leaves behind are taken back.

    fairchem 1 keeps the Wigner matrices of the last call on its modules. With a derivative they
    would hold the whole graph, and the model could neither be copied nor pickled.
    """
    held = [vars(owner) for owner in owners]
    held += [owner._modules for owner in owners if isinstance(owner, nn.Module)]
    before = [values.copy() for values in held]
    try:
        yield
    finally:
        for values, old in zip(held, before, strict=True):
            values.clear()
            values.update(old)
