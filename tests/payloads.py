"""Files that do something when they are opened, for the tests that they do not."""

from __future__ import annotations

import os
from pathlib import Path


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.makedirs, (str(self.mark), 0o777, True)


def calling(mark: Path) -> dict:
    """A config that makes a folder when Hydra instantiates it."""
    return {"_target_": "os.makedirs", "name": str(mark), "exist_ok": True}
