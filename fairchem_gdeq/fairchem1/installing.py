"""Changing one instance from outside for the length of one evaluation, and leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def installed(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
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
def restored(*modules: nn.Module) -> Iterator[None]:
    """Attributes and submodules that a forward pass leaves behind are taken back.

    fairchem 1 keeps the Wigner matrices of the last call on its modules. With a derivative they
    would hold the whole graph, and the model could neither be copied nor pickled.
    """
    before = [(vars(module).copy(), module._modules.copy()) for module in modules]
    try:
        yield
    finally:
        for module, (attributes, children) in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)


@contextmanager
def one_map(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The same function at every evaluation, whatever mode and random state the caller left.

    Dropout, stochastic depth and the like are off: evaluation mode, given back afterwards.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        for module in training:
            module.training = True
