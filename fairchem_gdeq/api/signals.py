"""Training signals by class name, with the settings of the configs as defaults."""

from __future__ import annotations

from typing import Any

from fairchem_gdeq.relax import Method
from fairchem_gdeq.training.steps import NamedSignal

DEFAULTS = {"fmax": 0.02, "adjoint_tol": 0.05, "adjoint_damping": 0.03}


def _named(name: str, settings: dict[str, Any]) -> NamedSignal:
    return NamedSignal(name, Method(**DEFAULTS | settings))


def GDEQ(**settings: Any) -> NamedSignal:
    """Algorithm 1; ``settings`` are those of ``fairchem_gdeq.relax.Method``, such as ``horizon``."""
    return _named("gdeq", settings)


def BPTT(**settings: Any) -> NamedSignal:
    """The full unroll of ``max_unroll`` steps; settings as ``GDEQ``."""
    return _named("bptt", settings)


def TruncatedBPTT(**settings: Any) -> NamedSignal:
    """Guidance over ``horizon`` steps alone; settings as ``GDEQ``."""
    return _named("truncated_bptt", settings)


def Implicit(**settings: Any) -> NamedSignal:
    """The equilibrium alone; settings as ``GDEQ``."""
    return _named("implicit", settings)
