"""LMDB files, opened so that a damaged one is an error and not a crash of the process."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import lmdb


class DamagedFile(OSError):
    """A whole LMDB file that cannot be read. Not a ValueError: fairchem passes over those."""


def open_readonly(path: Path) -> lmdb.Environment:
    """The environment of a file, one a process: LMDB's handles do not survive a fork.

    Raises:
        FileNotFoundError: no such file.
        DamagedFile: not an LMDB, or shorter than its own page count says.
    """
    return _open(Path(path).resolve(), os.getpid())


@cache
def _open(path: Path, process: int) -> lmdb.Environment:
    check(path)
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)


def check(path: Path) -> None:
    """Refuse a file that is no LMDB or was cut short.

    LMDB maps its files: a read beyond the end of a truncated one is no exception but a SIGBUS,
    which ends the process without a word.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DamagedFile(
            f"{path}: not a readable LMDB file ({error}): expected one of ASE or fairchem. Copy or "
            "download it again"
        ) from error
    with env:
        expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if (found := path.stat().st_size) < expected:
        raise DamagedFile(
            f"{path}: cut short: {found} bytes of {expected}. Copy or download it again."
        )


def get(path: Path, key: str) -> bytes | None:
    """A record, or None where there is none; raises lmdb.Error where its page is damaged."""
    with open_readonly(path).begin() as transaction:
        found: bytes | None = transaction.get(key.encode("ascii"))
        return found


def numeric_keys(path: Path) -> list[int]:
    """All keys that are decimal numbers, ascending.

    Raises:
        lmdb.Error: a damaged page is in the way.
    """
    with open_readonly(path).begin() as transaction, transaction.cursor() as cursor:
        keys = cursor.iternext(keys=True, values=False)
        return sorted(int(key) for key in keys if key.isdigit())


def entries(path: Path) -> int:
    """Number of records, of whatever kind, from the file's header."""
    return int(open_readonly(path).stat()["entries"])
