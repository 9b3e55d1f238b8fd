"""Rows to one ASE-LMDB: encoded by several processes, appended in order, resumable.

The file grows under the name ``data.aselmdb.partial``, chunk by chunk; each chunk is committed
together with a note of what it held, so that an interrupted conversion goes on where it stopped
and ends in the same file. Times and random ids, which ASE would add, are fixed for that.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.db.row import atoms2dict
from ase.io.jsonio import encode
from ase_db_backends.aselmdb import encode_object
from tqdm import tqdm

from fairchem_gdeq.data.parts import Part
from fairchem_gdeq.data.reading import Source, read_row
from fairchem_gdeq.data.rows import TARGET, BadRow
from fairchem_gdeq.data.sources import open_source

CHUNK = 256  # rows between commits
HEAD, NOTE = "progress", "progress:"  # keys of the partial file only
MAP_SIZE = 2**40  # bytes of address space, an upper bound of the file


@dataclass
class Chunk:
    """Encoded good rows of consecutive source rows, atom counts and names, and bad ones by index."""

    rows: list[bytes] = field(default_factory=list)
    natoms: list[int] = field(default_factory=list)
    sids: list[str] = field(default_factory=list)
    bad: dict[int, BadRow] = field(default_factory=dict)


def encode_row(atoms: Atoms, target_key: str | None) -> bytes:
    """A row as ASE-LMDB stores it, the target as ``pos_relaxed``; equal rows give equal bytes."""
    data = dict(atoms.info)
    if target_key is not None:
        data[TARGET] = np.asarray(data.pop(target_key), dtype=float)
    content = atoms2dict(atoms) | {
        "cell": np.asarray(atoms.cell),
        "pbc": atoms.pbc,
        "ctime": 0.0,
        "mtime": 0.0,
        "user": "",
        "key_value_pairs": {},
        "data": data,
    }
    del content["unique_id"]
    content["unique_id"] = hashlib.sha256(encode(content).encode()).hexdigest()[:32]
    encoded: bytes = encode_object(content, compress=True, json_encode=True)
    return encoded


def make_chunk(source: Source, start: int, stop: int) -> Chunk:
    """Read, check and encode the source rows from ``start`` to ``stop``."""
    chunk = Chunk()
    for index in range(start, stop):
        try:
            atoms = read_row(source, index)
        except BadRow as error:
            chunk.bad[index] = error
            continue
        atoms.info.setdefault("sid", str(index))
        chunk.rows.append(encode_row(atoms, source.target_key))
        chunk.natoms.append(len(atoms))
        chunk.sids.append(str(atoms.info["sid"]))
    return chunk


class PartialFile:
    """The growing file: of ``done`` source rows the good ones, with ``natoms`` and ``sids``, but for
    ``bad``.
    """

    def __init__(self, path: Path, fingerprint: dict[str, object]) -> None:
        """Begin, or go on.

        Raises:
            FileExistsError: it was begun from another source.
        """
        self.path = path
        self.done = 0
        self.natoms: list[int] = []
        self.sids: list[str] = []
        self.bad: dict[int, BadRow] = {}  # by index in the source
        self._env = lmdb.open(str(path), subdir=False, map_size=MAP_SIZE)
        wanted = json.dumps(fingerprint, sort_keys=True).encode()
        with self._env.begin(write=True) as transaction:
            found = transaction.get(HEAD.encode())
            if found is None:
                transaction.put(HEAD.encode(), wanted)
            elif found != wanted:
                raise FileExistsError(
                    f"{path} is the beginning of another conversion ({found.decode()}) than this "
                    f"({wanted.decode()}): remove it, or choose another folder"
                )
            for note in self._notes(transaction):
                bad = {index: BadRow(*what) for index, *what in note["bad"]}
                self._take(note["rows"], Chunk([], note["natoms"], note["sids"], bad))

    def _notes(self, transaction: lmdb.Transaction) -> Iterator[dict[str, Any]]:
        while (value := transaction.get(f"{NOTE}{self.done}".encode())) is not None:
            yield json.loads(value)

    def _take(self, rows: int, chunk: Chunk) -> None:
        self.done += rows
        self.natoms += chunk.natoms
        self.sids += chunk.sids
        self.bad |= chunk.bad

    def append(self, chunk: Chunk) -> None:
        """Commit a chunk: all of it or, when interrupted, nothing."""
        rows = len(chunk.rows) + len(chunk.bad)
        note = {"rows": rows, "natoms": chunk.natoms, "sids": chunk.sids}
        note["bad"] = [(index, bad.where, bad.reason) for index, bad in chunk.bad.items()]
        with self._env.begin(write=True) as transaction:
            first = len(self.natoms) + 1
            for i, row in enumerate(chunk.rows, first):
                transaction.put(str(i).encode(), row)
            following = encode_object(first + len(chunk.rows), json_encode=True)
            transaction.put(b"nextid", following)
            transaction.put(f"{NOTE}{self.done}".encode(), json.dumps(note).encode())
        self._take(rows, chunk)

    def finish(self, metadata: dict[str, object], final: Path) -> None:
        """Copy the rows, without the notes, to a file of their own, name it, and remove this one.

        Written at once and in order, that file has the same bytes however often this one was
        begun again; and it is as small as it can be.
        """
        with self._env.begin(write=True) as transaction:
            transaction.put(b"metadata", encode_object(metadata, json_encode=True))
        copy = final.with_name(f"{final.name}.copy")
        copy.unlink(missing_ok=True)
        with (
            lmdb.open(str(copy), subdir=False, map_size=MAP_SIZE) as env,
            env.begin(write=True) as out,
            self._env.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                if not key.startswith(b"progress"):
                    out.put(key, value, append=True)
        Path(f"{copy}-lock").unlink(missing_ok=True)
        os.replace(copy, final)
        self.close()
        self.path.unlink()

    def close(self) -> None:
        """Close the file and remove LMDB's lock file."""
        self._env.close()
        Path(f"{self.path}-lock").unlink(missing_ok=True)


_opened: dict[str, Source] = {}  # in a worker process: the source that it reads


def _open_in_worker(source: Path, target_key: str | None, part: Part | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    _opened["source"] = open_source(source, target_key, part)


def _chunk_in_worker(bounds: tuple[int, int]) -> Chunk:
    return make_chunk(_opened["source"], *bounds)


@contextmanager
def _chunks(
    source: Source, path: Path, bounds: list[tuple[int, int]], workers: int, part: Part | None
) -> Iterator[Iterator[Chunk]]:
    """The chunks in order, made by ``workers`` processes."""
    if workers == 1:
        yield (make_chunk(source, *each) for each in bounds)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_open_in_worker,
        initargs=(path, source.target_key, part),
    )
    try:
        yield pool.map(_chunk_in_worker, bounds)
    finally:
        pool.shutdown(cancel_futures=True)


def write(
    source: Source,
    path: Path,
    partial: PartialFile,
    workers: int = 1,
    part: Part | None = None,
) -> None:
    """Append what is not yet in the partial file, with a progress bar.

    Args:
        source: opened from ``path``, which worker processes open again.
        partial: what it is appended to.
        workers: processes that read and encode.
        part: of the source, as it was opened.
    """
    total = len(source)
    starts = range(partial.done, total, CHUNK)
    bounds = [(start, min(start + CHUNK, total)) for start in starts]
    with (
        tqdm(total=total, initial=partial.done, desc=str(path), unit="row") as bar,
        _chunks(source, path, bounds, workers, part) as chunks,
    ):
        for chunk in chunks:
            partial.append(chunk)
            bar.update(len(chunk.rows) + len(chunk.bad))
            bar.set_postfix(bad=len(partial.bad))
