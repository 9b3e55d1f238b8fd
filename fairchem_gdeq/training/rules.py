"""What a key of a config can expect: numbers, words, lists of words, paths of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

SHOWN = 120  # characters of a value in a message


@dataclass(frozen=True)
class Rule:
    """What a key expects.

    Attributes:
        expected: in words.
        accepts: whether a value is that.
    """

    expected: str
    accepts: Callable[[Any], bool]

    def or_infinite(self) -> Rule:
        """The same, or infinity, with which a limit is none."""
        return Rule(f"{self.expected}, or inf", lambda v: v == math.inf or self.accepts(v))

    def or_digits(self) -> Rule:
        """The same, or its digits as text, as an environment variable has them."""
        return Rule(
            self.expected,
            lambda v: self.accepts(int(v) if isinstance(v, str) and v.isdecimal() else v),
        )

    def or_null(self) -> Rule:
        """The same, or null."""
        return Rule(f"{self.expected}, or null", lambda v: v is None or self.accepts(v))


def number(low: float, high: float = math.inf, above: bool = False, below: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``; strictly ``above`` and ``below``, where that is said."""

    def accepts(value: Any) -> bool:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return False
        return (value > low if above else value >= low) and (
            value < high if below else value <= high
        )

    bound = "above" if above else "from"
    text = f"a number {bound} {low:g}"
    if high < math.inf:
        text += f" {'and below' if below else 'to'} {high:g}"
    elif not above:
        text += " on"
    return Rule(text, accepts)


def whole(low: int, high: float = math.inf) -> Rule:
    """A whole number, at least ``low`` and at most ``high``."""
    return Rule(
        f"a whole number from {low} {'on' if high == math.inf else f'to {high}'}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def one_of(*words: str) -> Rule:
    """One of these words."""
    return Rule(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words)


def text(what: str) -> Rule:
    """Text that is not empty; ``what`` it names."""
    return Rule(what, _is_text)


def words(what: str, example: str, least: int = 0) -> Rule:
    """A list of words, at least ``least``: one that is typed without brackets is taken apart else."""

    def accepts(value: Any) -> bool:
        return _is_list(value) and len(value) >= least and all(map(_is_text, value))

    return Rule(f"a list of {what}, such as {example}", accepts)


def section_or(other: Rule) -> Rule:
    """What ``other`` is, or a section of keys."""
    return Rule(
        f"{other.expected}, or a section of keys",
        lambda v: FULL.accepts(v) or other.accepts(v),
    )


def said(value: Any) -> str:
    """A value as a message shows it."""
    shown = "null" if value is None else str(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any) -> bool:
    return isinstance(value, ListConfig | Sequence) and not isinstance(value, str)


def _is_source(value: Any) -> bool:
    """Whether data can be there: a path, or a list of paths and of such lists."""
    return _is_text(value) or (_is_list(value) and bool(value) and all(map(_is_source, value)))


TRUTH = Rule("true or false", lambda v: isinstance(v, bool))
TRUE = Rule("true", lambda v: v is True)
POSITIVE, NOT_NEGATIVE = number(0, above=True), number(0)
PART = Rule(
    "the part of the split that is used, above 0 and at most 1", number(0, 1, above=True).accepts
)
WORD = text("a word")
SOURCE = Rule("a folder, or a list of folders", _is_source)
NAME = Rule("a name", lambda v: _is_text(v) or whole(0).accepts(v))
SECTION = Rule("a section of keys", lambda v: isinstance(v, DictConfig | dict))
FULL = Rule(SECTION.expected, lambda v: SECTION.accepts(v) and bool(v))
