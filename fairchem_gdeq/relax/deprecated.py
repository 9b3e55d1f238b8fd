"""What configs of version 0.1 name, for one more release: the same settings in their new form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# Keys of the adjoint's options, and values of ``Method``, where they are others today.
FLAT = {"adjoint_tol": "tol", "max_vjps": "max_vjps", "adjoint_damping": "damping"}
DEFAULTS = {"fmax": 0.01, "adjoint_tol": 0.01, "adjoint_damping": 0.0}


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a signal or a relaxer, with parts in place of the flat keys of version 0.1.

    ``solver`` and ``solver_options`` become one mapping, and so do ``adjoint``, ``adjoint_tol``,
    ``max_vjps`` and ``adjoint_damping``. Settings without those keys are returned as they are.
    """
    new = dict(settings)
    if "solver_options" in new:
        options = new.pop("solver_options") or {}
        new["solver"] = {**_named(new.get("solver", "lbfgs")), **options}
        _warn("solver_options", "options beside the name: solver: {name: lbfgs, softest: 10.0}")
    if options := {FLAT[key]: new.pop(key) for key in FLAT if key in new}:
        adjoint = _named(new.get("adjoint", "gmres"))
        # The identity had these keys too, and read none of them.
        new["adjoint"] = adjoint if adjoint["name"] == "identity" else adjoint | options
        _warn("adjoint_tol, max_vjps, adjoint_damping", "adjoint: {name: gmres, tol: 0.05}")
    return new


def Method(**settings: Any) -> dict[str, Any]:
    """The settings of a signal, as configs of version 0.1 give them, with its defaults."""
    _warn("_target_: fairchem_gdeq.relax.Method", "the same keys without _target_")
    return current_settings(DEFAULTS | settings)


def _named(part: str | Mapping[str, Any]) -> dict[str, Any]:
    """A name, or a mapping with it, as a mapping."""
    return {"name": part} if isinstance(part, str) else dict(part)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is of version 0.1: write {new}", FutureWarning, stacklevel=3)
