"""What a benchmark has measured so far, in a file that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

Measured = dict[str, Any]


class NotInstalled(Exception):
    """A package that a row of a table needs is not there; the message says how to get it."""


def not_installed(package: str, error: ImportError) -> NoReturn:
    """
    Raises:
        NotInstalled: always.
    """
    raise NotInstalled(
        f"{package} cannot be imported ({error}): pip install -e .[peers]"
    ) from error


class Kept:
    """Measurements by name, one JSON object a line; the first line says with what settings.

    A line is written as soon as it is known, so an interrupted benchmark loses the one in work.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """
        Args:
            path: made with its folder if it is not there.
            settings: all that the measurements depend on.

        Raises:
            SystemExit: the file's are of other settings.
        """
        self.path, self.known = path, dict[str, Measured]()
        wanted = json.loads(json.dumps(dict(settings)))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": wanted})
            return
        first, *rest = path.read_text().splitlines()
        there = json.loads(first)["settings"]
        if there != wanted:
            other = [k for k in there.keys() | wanted if there.get(k) != wanted.get(k)]
            raise SystemExit(
                f"{path} holds measurements with other settings ({', '.join(sorted(other))}): move it, "
                "or choose another place with --folder"
            )
        for line in rest:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off while it was written
            self.known[entry["name"]] = entry["measured"]

    def __call__(self, name: str, measure: Callable[[], Measured]) -> Measured:
        """The measurement of that name: the kept one, or else what ``measure`` returns."""
        if name not in self.known:
            found = measure()
            self.known[name] = found
            self._write({"name": name, "measured": found})
        return self.known[name]

    def _write(self, line: Measured) -> None:
        # A line that was cut off has no end of its own.
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")
