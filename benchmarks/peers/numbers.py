"""Numbers of repeated measurements in the cells of a table, and the fit of an exponent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most: ``1.20 (1.10 to 1.45)``; a dash for none."""
    if not values:
        return "-"
    middle, low, high = (
        f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def print_head(header: Sequence[str]) -> None:
    """The first two lines of a table in Markdown, numbers to the right."""
    print(line(*header))
    print("|---" + "|---:" * (len(header) - 1) + "|")


def line(*entries: str) -> str:
    """Another line of such a table."""
    return f"| {' | '.join(entries)} |"


def print_missing(name: str, sentence: str, header: Sequence[str]) -> None:
    """A row that has a sentence in place of numbers."""
    print(f"| {name} | {sentence} |" + " |" * (len(header) - 2))


def turned(items: Sequence[str], turn: int) -> list[str]:
    """The items from another one on in every turn, so that none has the same place in all."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """p of values ~ sizes^p, by least squares of the logarithms, and its standard error.

    The error is NaN where no point is left to tell it from: with two.

    Raises:
        ValueError: fewer than two different sizes, or something that is not positive.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes {list(sizes)}: an exponent needs two different ones")
    if min(*sizes, *values) <= 0:
        raise ValueError("sizes and values have to be positive for a power law")
    x, y = np.log(sizes), np.log(values)
    arms = x - x.mean()
    slope = float(arms @ y / (arms @ arms))
    left = y - y.mean() - slope * arms
    if len(x) == 2:
        return slope, float("nan")
    return slope, float(np.sqrt(left @ left / (len(x) - 2) / (arms @ arms)))
