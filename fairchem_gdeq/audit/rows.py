"""One line of an audit: a quantity of the base and of the tuned model, and whether it has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairchem_gdeq.evaluation.comparison import FEWEST, mean_with_interval

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
SAME, DIFFERS, NOT_MADE = "no change", "differs", "not made"
VERDICTS = (WORSE, BETTER, DIFFERS, UNDECIDED, SAME, NOT_MADE)
LESS, MORE, NEITHER = "less", "more", "neither"
# Relative: single precision, whose sums may come in another order.
EQUAL = 1e-5


@dataclass(frozen=True)
class Row:
    """A quantity before and after.

    Attributes:
        check: what it was measured in.
        quantity: what it is.
        unit: of the numbers; empty for counts.
        base, tuned: its mean over the sample; None where it could not be measured.
        change, low, high: mean change by pairs, and its 95% interval by a bootstrap over the sample.
        sample: number of pairs, or of groups of them that count as one.
        verdict: one of ``VERDICTS``.
        remark: what else has to be known, in sentences.
    """

    check: str
    quantity: str
    unit: str = ""
    base: float | None = None
    tuned: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    sample: int = 0
    verdict: str = NOT_MADE
    remark: str = ""


def not_made(check: str, quantity: str, why: str) -> Row:
    """The line of a check that could not be made."""
    return Row(check, quantity, remark=why)


def paired(
    check: str,
    quantity: str,
    unit: str,
    values: Sequence[ArrayLike],
    good: str = LESS,
    groups: Sequence[Hashable] | None = None,
    remark: str = "",
    least: float = 1e-9,
) -> Row:
    """Compare two models by pairs.

    Args:
        check, quantity, unit, remark: as in ``Row``.
        values: [2, s], what base and tuned model have on each structure; pairs in which one is not finite
            are left out, and the remark says how many.
        good: ``less``, ``more`` or ``neither`` of it is better.
        groups: [s], of each structure; those of one group are averaged and count as one, because they are
            not independent. None: each counts.
        least: where no pair differs by more, nothing has changed.
    """
    both = np.array([np.asarray(each, dtype=float).ravel() for each in values])
    known = np.isfinite(both).all(0)
    said = [remark] if remark else []
    if lost := int((~known).sum()):
        said.append(f"{lost} of {len(known)} are left out: not finite.")
    if not known.any():
        return not_made(check, quantity, " ".join(said) or "There is nothing to measure it on.")
    both = both[:, known]
    if groups is not None:
        both = _grouped(both, [group for group, there in zip(groups, known, strict=True) if there])
    old, new = both
    verdict = SAME
    change, low, high = 0.0, 0.0, 0.0
    if not np.allclose(old, new, rtol=EQUAL, atol=least):
        change, low, high = mean_with_interval(new - old)
        verdict = _verdict(len(old), low, high, good)
    if len(old) < FEWEST:
        said.append(f"{len(old)} are too few to judge: {FEWEST} are needed.")
    return Row(
        check=check,
        quantity=quantity,
        unit=unit,
        base=float(old.mean()),
        tuned=float(new.mean()),
        change=change,
        low=low,
        high=high,
        sample=len(old),
        verdict=verdict,
        remark=" ".join(said),
    )


def share(
    check: str, quantity: str, values: Sequence[ArrayLike], good: str = LESS, remark: str = ""
) -> Row:
    """``paired`` for what a structure has or has not [2, s], in percent."""
    counts = [100.0 * np.asarray(each, dtype=float) for each in values]
    return paired(check, quantity, "%", counts, good=good, remark=remark)


def summary(rows: Sequence[Row]) -> str:
    """What tuning cost and gained, in a sentence."""
    by_verdict = defaultdict(list)
    for row in rows:
        by_verdict[row.verdict].append(f"{row.quantity} ({row.check})")
    worse, better = by_verdict[WORSE], by_verdict[BETTER]
    text = f"Tuning has made {len(worse)} of {len(rows)} quantities worse"
    text += f": {', '.join(worse)}" if worse else ""
    text += f". Better are {len(better)}"
    text += f": {', '.join(better)}" if better else ""
    rest = [(UNDECIDED, "undecided"), (SAME, "unchanged"), (DIFFERS, "different")]
    counts = [f"{len(by_verdict[key])} {word}" for key, word in rest if by_verdict[key]]
    if missing := len(by_verdict[NOT_MADE]):
        counts.append(f"{missing} could not be measured")
    return f"{text}. {', '.join(counts).capitalize()}." if counts else f"{text}."


def _verdict(count: int, low: float, high: float, good: str) -> str:
    """Decided where the interval excludes zero."""
    if count < FEWEST or low <= 0 <= high:
        return UNDECIDED
    if good == NEITHER:
        return DIFFERS
    return BETTER if (high < 0) == (good == LESS) else WORSE


def _grouped(both: NDArray[np.float64], names: Sequence[Hashable]) -> NDArray[np.float64]:
    """The mean of each group, in the order of their first members."""
    members = defaultdict(list)
    for name, pair in zip(names, both.T, strict=True):
        members[name].append(pair)
    return np.array([np.mean(each, axis=0) for each in members.values()]).T
