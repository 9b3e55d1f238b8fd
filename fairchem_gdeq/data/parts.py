"""A data set in parts, each converted by a process of its own, such as the jobs of an array."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from ase import Atoms

from fairchem_gdeq.data.reading import Source

FINAL = "data.aselmdb"  # in the folder of a conversion that has ended
_NAME = re.compile(r"part_(\d+)_of_(\d+)")


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a source: the ``number``-th of ``of`` parts, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of ``3/16``.

        Raises:
            ValueError: no such part.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"part {text}: expected one of a number of parts, such as 1/16 or 16/16"
            )
        return cls(int(found[1]), int(found[2]))

    def folder(self, whole: Path) -> Path:
        """Where it is, in the folder of the data set."""
        return whole / f"part_{self.number:04d}_of_{self.of:04d}"

    def rows(self, total: int) -> range:
        """Those of ``total`` rows that are of it; no two parts differ by more than one row."""
        return range(total * (self.number - 1) // self.of, total * self.number // self.of)


class PartSource:
    """The rows of a part as a source of their own."""

    def __init__(self, source: Source, part: Part) -> None:
        self._source, self._rows = source, part.rows(len(source))
        self.target_key = source.target_key

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """File and record of a row, as the whole source knows it."""
        return self._source.where(self._rows[index])

    def read(self, index: int) -> Atoms:
        """As the whole source's, with the sid that the row has there where it has none of its own."""
        atoms = self._source.read(self._rows[index])
        atoms.info.setdefault("sid", str(self._rows[index]))
        return atoms


def folders_of(pattern: str) -> list[str]:
    """The folders that a pattern such as ``mydata/train/part_*`` matches, sorted; else the text itself.

    Raises:
        FileNotFoundError: they are parts of a conversion, and some are not there or have not ended.
    """
    found = sorted(glob(pattern)) if has_magic(pattern) else []
    if not found or not all(Path(each).is_dir() for each in found):
        return [pattern]
    if text := _missing(found):
        raise FileNotFoundError(f"data set {pattern}: {text}")
    return found


def _missing(folders: Iterable[str]) -> str | None:
    """What to say of parts that are not there."""
    numbers: dict[tuple[Path, int], set[int]] = {}
    for folder in map(Path, folders):
        if name := _NAME.fullmatch(folder.name):
            there = numbers.setdefault((folder.parent, int(name[2])), set())
            if (folder / FINAL).is_file():
                there.add(int(name[1]))
    for (_, of), there in numbers.items():
        if missing := sorted(set(range(1, of + 1)) - there):
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            return (
                f"{len(missing)} of {of} parts have not been converted to their end ({shown}). Run "
                "them again; what was converted is kept"
            )
    return None
