"""A loader's batches taken apart again, for whoever packs structures by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def rows_of(batches: Iterable[Any], collate: Callable[[list[Any]], Any]) -> Iterator[Any]:
    """The structures of batches as batches of one, in order.

    Args:
        batches: a loader; its batches have ``num_graphs`` and ``get_example``.
        collate: makes a batch of a list of examples.
    """
    for batch in batches:
        for index in range(batch.num_graphs):
            yield collate([batch.get_example(index)])
