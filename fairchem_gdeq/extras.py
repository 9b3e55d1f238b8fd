"""Packages of an extra, which the rest does without."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, package: str, extra: str) -> Any:
    """A module of that package.

    Raises:
        ImportError: names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs the package {package}, which is not there ({error}): "
            f"pip install 'fairchem-gdeq[{extra}]'"
        ) from error
