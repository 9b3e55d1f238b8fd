"""How often the CPU would wait for the device, and what it would have it compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Counts:
    """What happened on the device: names of operations, and how often.

    Attributes:
        waits: those for which the CPU waited for the device.
        kernels: those that computed or copied something (views do not).
        within: whether what is asked for now counts.
    """

    within: Callable[[], bool]

    waits: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)


_counting: list[Counts] = []


@contextmanager
def counted(within: Callable[[], bool] = lambda: True) -> Iterator[Counts]:
    """Counts of what happens inside; an inner ``counted`` takes nothing from an outer one.

    ``within`` is asked at each operation whether to count it: ``tests.census.is_ours``, for instance.
    """
    counts = Counts(within)
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def count(name: str, waited: bool, kernel: bool) -> None:
    """An operation: whether the CPU waited for it, and whether it computed or copied something."""
    for counts in [c for c in _counting if c.within()]:
        if waited:
            counts.waits[name] += 1
        if kernel:
            counts.kernels[name] += 1
