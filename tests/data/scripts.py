"""The modules of ``data``, which are scripts, not a package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

DATA = Path(__file__).parents[2] / "data"
SHARED = ("packing", "records", "relaxing", "sevennet", "ship")


@contextmanager
def imported(folder: str, *own: str) -> Iterator[SimpleNamespace]:
    """Those of a folder of ``data``, and those that its folders share, by their names."""
    with pytest.MonkeyPatch.context() as patch:
        for place in (DATA, DATA / folder):
            patch.syspath_prepend(place)
        for name in own:  # another folder has modules of the same names
            sys.modules.pop(name, None)
        yield SimpleNamespace(**{name: import_module(name) for name in own + SHARED})
