"""Labelled frames beside the base and the structures of the run that is to train on them.

Of both fairchem lines: each gives its data sets as ``Rows``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.evaluation.task import Batch, to_ase
from fairchem_gdeq.training.force_errors import Compared, agreement_of
from fairchem_gdeq.training.frame_checks import (
    Elements,
    looked_at,
    require_no_overlap,
    require_unit,
)


class Rows(Protocol):
    """A data set of structures; each is a batch of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


def check_frames(
    rows: Rows,
    source: str,
    limit: int | None,
    compared: Iterable[Compared],
    trained: Iterable[int],
    held: Iterable[Named],
) -> None:
    """Refuse frames that a run should not train on, and say what is strange about them.

    Args:
        rows: the frames.
        source: what messages call them.
        limit: first atomic number that the base does not know; None: it does not say.
        compared: batches of them beside the base's forces, always the same ones; asked for last.
        trained: atomic numbers of the structures that the run trains on.
        held: structures that are held out.

    Raises:
        ValueError: an element that the base does not know, labels in another unit, or frames that
            are held-out structures; says which.
    """
    elements = Elements(source, limit)
    frames = []
    for index in looked_at(len(rows)):
        row = rows[index]
        frames.append(Named(name_of(row), *to_ase(row, row.pos)))
        elements.add(frames[-1])
    elements.compare(trained)
    require_no_overlap(frames, held, source)
    require_unit(agreement_of(compared), source)


def elements_of(rows: Rows) -> set[int]:
    """Atomic numbers of a data set's structures."""
    return {int(number) for i in looked_at(len(rows)) for number in rows[i].atomic_numbers.unique()}


def structures_of(split: str, rows: Rows) -> Iterator[Named]:
    """Start and target of each structure of a split, or frames, as messages call them."""
    for index in looked_at(len(rows)):
        row = rows[index]
        name = f"{name_of(row)} in {split}"
        if "pos_relaxed" not in row:
            yield Named(name, *to_ase(row, row.pos))
            continue
        yield Named(f"X_0 of {name}", *to_ase(row, row.pos))
        yield Named(f"X_gt of {name}", *to_ase(row, row.pos_relaxed))


def name_of(row: Batch) -> str:
    """The name of a batch of one structure."""
    return str(row.sid if isinstance(row.sid, str) else row.sid[0])
