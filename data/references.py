"""Potentials that starts are relaxed on, by the names that the generators take."""

from __future__ import annotations

from functools import cache

from ase.calculators.calculator import Calculator
from sevennet import sevennet


@cache
def chgnet() -> Calculator:
    """CHGNet on one thread, one of each process; its weights ship in the ``chgnet`` package."""
    import torch
    from chgnet.model.dynamics import CHGNetCalculator

    torch.set_num_threads(1)
    return CHGNetCalculator(use_device="cpu")


REFERENCES = {"sevennet": sevennet, "chgnet": chgnet}
