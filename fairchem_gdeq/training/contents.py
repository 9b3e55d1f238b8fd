"""What is in the files that a run's settings name, so that another one under their name is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

BLOCK, BLOCKS = 1 << 16, 1024  # bytes of a sample of data, and how many there are in all
BASES = ("runner.train_eval_unit.model.path", "task.base")


def contents_of(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of files and folders that are there, and what tells their contents from others.

    Of a base twelve digits of its checksum; of data, which may be many gigabytes, of samples spread over
    all files, which are everything up to 64 MiB.
    """
    for key, value in settings.items():
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, Sequence) or not all(isinstance(each, str) for each in paths):
            continue
        if key in BASES and Path(paths[0]).is_file():
            with Path(paths[0]).open("rb") as file:
                yield key, hashlib.file_digest(file, "sha256").hexdigest()[:12]
        elif key.endswith(".src"):
            files = [file for path in paths for file in _files(path)]
            if files:
                yield key, _sampled(files)


def _files(path: str) -> Iterator[Path]:
    """Data files of a folder, a file or a pattern; not the locks that a reader makes."""
    for found in map(Path, sorted(glob(path))):
        inside = sorted(found.rglob("*")) if found.is_dir() else [found]
        yield from (file for file in inside if file.is_file() and "lock" not in file.suffix)


def _sampled(files: Sequence[Path]) -> str:
    """Twelve digits of all files' sizes, and of blocks of as many files as there may be blocks."""
    digest = hashlib.sha256()
    sizes = [path.stat().st_size for path in files]
    digest.update(f"{sizes}".encode())
    most = max(1, BLOCKS // len(files))
    for i in _spread(len(files), BLOCKS):
        with files[i].open("rb") as file:
            for k in _spread(-(-sizes[i] // BLOCK), most):
                file.seek(BLOCK * k)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:12]


def _spread(count: int, most: int) -> Iterable[int]:
    """All numbers below ``count``, or ``most`` of them from the first to the last."""
    if count <= most:
        return range(count)
    return (k * (count - 1) // max(1, most - 1) for k in range(most))
