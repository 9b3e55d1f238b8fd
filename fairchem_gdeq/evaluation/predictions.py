"""Relaxed structures on disk: a journal that survives interruption, and the files made from it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path
from uuid import uuid4

import ase.io
from ase import Atoms
from ase.io.jsonio import decode, encode
from ase.io.trajectory import Trajectory
from tqdm import tqdm

from fairchem_gdeq.batching.bulk import Bulk
from fairchem_gdeq.data.names import write_extxyz
from fairchem_gdeq.evaluation.submission import write_positions
from fairchem_gdeq.evaluation.task import Batch, labels_of
from fairchem_gdeq.training.in_use import naming, whole_file

# Charge and spin are fairchem 2's.
STATED = ("atomic_numbers", "pos", "cell", "pbc", "fixed", "charge", "spin")


def start_of(row: Batch) -> str:
    """What tells a row (a batch of one structure) from any other: name, place and start."""
    digest = hashlib.sha256(repr(labels_of(row)).encode())
    for key in filter(row.__contains__, STATED):
        digest.update(row[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Journal:
    """Relaxed structures of one split, a line of JSON each, on disk as soon as they are known.

    Every rank writes its own file and reads those of all. The file names hold the fingerprint of
    what made them (weights, config and units of the model, and how it relaxes), so that another model's
    or other settings' structures are never taken up.
    """

    def __init__(self, folder: Path, split: str, made_by: str, rank: int) -> None:
        """``made_by``: a ``fingerprint``. Makes the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.split, self.made_by = folder, split, made_by
        self.path = folder / f"{split}.{made_by}.{rank}.jsonl"

    def read(self) -> dict[str, Atoms]:
        """Structures by their ``start_of``; a line cut short by an interruption is left out."""
        found: dict[str, Atoms] = {}
        for path in sorted(self.folder.glob(f"{escape(self.split)}.{self.made_by}.*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = decode(line)
                except ValueError:
                    continue
                atoms = Atoms.fromdict(entry["atoms"])
                if not atoms.info["failed"]:  # there may be more memory this time
                    found[entry["start"]] = atoms
        return found

    def append(self, start: str, atoms: Atoms) -> Atoms:
        """Write a structure through to the disk; returns it as it will be read."""
        line = encode({"start": start, "atoms": atoms.todict()})
        with naming(self.path), self.path.open("ab+") as file:
            if file.tell() and not self._ends_with_newline():
                file.write(b"\n")  # after a line cut short
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        as_read: Atoms = Atoms.fromdict(decode(line)["atoms"])
        return as_read

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def remove(self) -> None:
        """Delete the split's journals, those of other models and settings too."""
        own = re.compile(rf"{re.escape(self.split)}\.[^.]+\.\d+\.jsonl")
        for path in self.folder.iterdir():
            if own.fullmatch(path.name):  # that of the split ood.v2 is not of ood
                path.unlink(missing_ok=True)


def relax_all(journal: Journal, rows: Iterable[Batch], bulk: Bulk, bar: tqdm) -> list[Atoms]:
    """All rows relaxed: those in the journal as they are there, the others by ``bulk``."""
    known = journal.read()
    if known:
        logging.info(f"{len(known)} structures are known from an interrupted run")
    images: list[Atoms] = []

    def missing() -> Iterator[Batch]:
        for row in rows:
            start = start_of(row)
            if start in known:
                images.append(known[start])
                bar.update()
            else:
                yield row

    for relaxed in bulk.relax(missing()):
        images.append(journal.append(start_of(relaxed.row), relaxed.to_ase()))
        bulk.show(bar)
    return images


def each_row_once(images: Iterable[Atoms]) -> list[Atoms]:
    """Sorted by name, then row, without the repeats of a row that padding a sampler makes."""
    unique = {atoms.info["row"]: atoms for atoms in images}
    return sorted(unique.values(), key=lambda atoms: (atoms.info["sid"], atoms.info["row"]))


def write(folder: Path, split: str, images: list[Atoms]) -> None:
    """``<split>.extxyz`` with every structure, and ``<split>.npz`` by ``submission.write_positions``.

    Files appear complete or not at all.
    """
    with whole_file(folder / f"{split}.extxyz") as part:
        write_extxyz(part, images)
    write_positions(folder / f"{split}.npz", images)


def keep(path: Path, images: list[Atoms]) -> None:
    """Write relaxed structures to where ``kept_in`` finds them, to the digit."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")  # other runs may write the same
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(part, images, format="traj")
        part.replace(path)


def kept_in(path: Path) -> list[Atoms] | None:
    """The structures of a file; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        images = list(Trajectory(path))
    except Exception as error:  # whatever a damaged file leads to: it is made anew
        logging.warning(f"{path} cannot be read, so its structures are relaxed again: {error}")
        return None
    logging.info(f"{len(images)} structures are as an earlier run has relaxed them ({path})")
    return images
