"""Work of an audit over the processes, and over checks that may fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from fairchem_gdeq.audit.rows import Row, not_made
from fairchem_gdeq.training.ranks import gather, rank, ranks

T = TypeVar("T")
R = TypeVar("R")


class Unmeasured(RuntimeError):
    """Something that was to be measured could not be, on one rank or on all."""


def shared(items: Sequence[T]) -> list[T]:
    """The part of this rank."""
    return list(items[rank() :: ranks()])


def spread(items: Sequence[T], measure: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """What ``measure`` finds of each of ``items``, in their order, on every rank.

    Args:
        items: the same on every rank; each takes its part.
        measure: one result for each item that it is given.

    Raises:
        Unmeasured: it has raised something on one of the ranks.
    """
    places = shared(range(len(items)))
    own: list[tuple[int, R]] = []
    failure = ""
    try:
        if places:
            own = list(zip(places, measure([items[i] for i in places]), strict=True))
    except Exception as error:  # all ranks have to know
        logging.exception("a check of the audit failed")
        failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if failures := [each for each in gather([failure]) if each]:
        raise Unmeasured(failures[0])
    return [result for _, result in sorted(gather(own), key=lambda each: each[0])]


def attempted(check: str, quantity: str, make: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a check, or one that says why it could not be made; the others go on."""
    try:
        return make()
    except (Unmeasured, OSError, ValueError) as error:
        return [not_made(check, quantity, f"Could not be measured: {error}")]
