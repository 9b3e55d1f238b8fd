"""A Markdown table whose rows are printed as soon as they are known."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence


def print_rows(
    header: Sequence[str], names: Iterable[str], words: Sequence[str], cells: Callable[[str], str]
) -> None:
    """A row ``| name | cells(name) |`` for each name; with words, for those that contain one."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for name in names:
        if not words or any(word.lower() in name.lower() for word in words):
            print(f"| {name} | {cells(name)} |", flush=True)
