"""Packages of the extra ``relaxnet``, which the rest of this package does without."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, package: str) -> Any:
    """A module of that package.

    Raises:
        ImportError: names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"RelaxNet needs the package {package}, which is not there ({error}): "
            "pip install 'fairchem-gdeq[relaxnet]'"
        ) from error
