"""Two models on the same structures: is the second better? By pairs, with an interval."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from fairchem_gdeq.evaluation.basin import Basin

NOTICEABLE = 0.02  # amu^0.5 Angstrom: the ends of two solvers on one potential differ by less
RESAMPLES = 10_000
# Of six structures that are all better, chance alone would have it once in 32: 6 is the least number
# with which a two-sided 95% interval can mean anything.
FEWEST = 6


class Scored(Protocol):
    """What is compared of a structure: its row, its Delta Q, and whether its relaxation diverged."""

    @property
    def row(self) -> int:
        """Its place in the data set."""

    @property
    def delta_q(self) -> float:
        """Eq. 2, amu^0.5 Angstrom."""

    @property
    def diverged(self) -> bool:
        """Whether its relaxation left every bound."""


class End(NamedTuple):
    """Just that, which a checkpoint can hold."""

    row: int
    delta_q: float
    diverged: bool


@dataclass(frozen=True)
class Comparison:
    """How a model does against another, structure by structure.

    The mean of Delta Q is decided by the few structures that end farthest away. What decides here is the
    mean change of log(1 + Delta Q), Delta Q in amu^0.5 Angstrom, in which they weigh no more than others.

    Attributes:
        structures: number of pairs.
        confidence: of both intervals, which are bootstraps over structures.
        log_change: mean change of log(1 + Delta Q); negative is better.
        log_low, log_high: its interval.
        change: mean change of Delta Q, amu^0.5 Angstrom.
        low, high: its interval.
        better, worse: structures whose Delta Q fell or rose by more than ``NOTICEABLE``.
        gained, lost: structures that are in the right basin only after, or only before.
        needed: structures with which a mean change of this size would show; infinite for none.
    """

    structures: int
    confidence: float
    log_change: float
    log_low: float
    log_high: float
    change: float
    low: float
    high: float
    better: int
    worse: int
    gained: int
    lost: int
    needed: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval of ``log_change`` excludes 0, else ``undecided``.

        So it is for fewer than ``FEWEST`` structures, of which a bootstrap makes too narrow intervals.
        """
        if self.structures < FEWEST:
            return "undecided"
        if self.log_high < 0:
            return "better"
        return "worse" if self.log_low > 0 else "undecided"

    def state(self) -> dict[str, Any]:
        """For results files and checkpoints."""
        return {**asdict(self), "verdict": self.verdict}

    def __str__(self) -> str:
        text = (
            f"{self.verdict}: {self.better} of {self.structures} structures nearer, {self.worse} farther "
            f"(by more than {NOTICEABLE}), {self.gained} basins gained, {self.lost} lost; mean change of "
            f"log(1 + dQ) {self.log_change:+.3f} ({self.confidence:.0%}: {self.log_low:+.3f} to "
            f"{self.log_high:+.3f}), of dQ {self.change:+.2f} ({self.low:+.2f} to {self.high:+.2f})"
        )
        if self.verdict == "undecided" and math.isfinite(self.needed):
            text += f"; a change of this size shows with about {self.needed:.0f} structures"
        return text


class Pairs(NamedTuple):
    """Structures as two models leave them.

    Attributes:
        rows: [s] their places in the data set, sorted.
        before, after: [s] Delta Q, amu^0.5 Angstrom; finite.
        was_right, is_right: [s] bool, whether they are in the right basin, before and after.
    """

    rows: NDArray[np.int64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    was_right: NDArray[np.bool_]
    is_right: NDArray[np.bool_]

    @property
    def gained(self) -> NDArray[np.bool_]:
        """[s] in the right basin only after."""
        return self.is_right & ~self.was_right

    @property
    def lost(self) -> NDArray[np.bool_]:
        """[s] in the right basin only before."""
        return self.was_right & ~self.is_right


def pairs_of(before: Sequence[Scored], after: Sequence[Scored], basin: Basin) -> Pairs:
    """Pair the records of two models by row.

    A structure that diverged counts as not in its basin, and never as nearer than before.

    Args:
        before, after: records of the same rows, in any order.
        basin: when a structure is in the right one.

    Raises:
        ValueError: they are not of the same rows, or of none.
    """
    known, now = ({r.row: r for r in records} for records in (before, after))
    if known.keys() != now.keys() or not known:
        raise ValueError(
            f"expected records of the same structures to compare: {len(known)} rows before, {len(now)} "
            f"after, {len(known.keys() & now.keys())} in both"
        )
    rows = sorted(known)
    old = _distances(known[row] for row in rows)
    new = _distances(now[row] for row in rows)
    lost_sight = np.array([now[row].diverged for row in rows])
    new = np.where(lost_sight, np.maximum(old, new), new)
    was = (old < basin.delta_q) & ~np.array([known[row].diverged for row in rows])
    found = (new < basin.delta_q) & ~lost_sight
    return Pairs(np.array(rows), old, new, was, found)


def compare(
    before: Sequence[Scored], after: Sequence[Scored], basin: Basin, confidence: float = 0.95
) -> Comparison:
    """How the second of two models does against the first.

    Args:
        before, after, basin: as ``pairs_of``.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: as ``pairs_of``.
    """
    pairs = pairs_of(before, after, basin)
    logs = np.log1p(pairs.after) - np.log1p(pairs.before)
    plain = pairs.after - pairs.before
    return Comparison(
        len(pairs.rows),
        confidence,
        *mean_with_interval(logs, confidence),
        *mean_with_interval(plain, confidence),
        better=int((plain < -NOTICEABLE).sum()),
        worse=int((plain > NOTICEABLE).sum()),
        gained=int(pairs.gained.sum()),
        lost=int(pairs.lost.sum()),
        needed=_needed(logs, confidence),
    )


# Standard deviation over structures of the change of log(1 + dQ): that of 80 silicon test structures
# between the shipped base and a run of configs/si/gdeq.yml.
SPREAD = 0.6
SMALL, LARGE = 0.1, 0.2  # mean changes of log(1 + dQ): for large dQ, of about a tenth and a fifth


def structures_for(change: float, spread: float = SPREAD, confidence: float = 0.95) -> int:
    """With how many structures a mean change would show.

    Args:
        change: mean change of log(1 + Delta Q).
        spread: standard deviation of a structure's change.
        confidence: of the interval that would just exclude 0.
    """
    return math.ceil((_quantile(confidence) * spread / change) ** 2)


def change_for(count: int, spread: float = SPREAD, confidence: float = 0.95) -> float:
    """The inverse: the mean change that would just show with so many structures."""
    return _quantile(confidence) * spread / math.sqrt(count)


def warn_of_few(count: int) -> None:
    """Say what change so many validation structures can show, aloud where only a large one would."""
    few, many = structures_for(LARGE), structures_for(SMALL)
    shows = f"a mean change of log(1 + dQ) of about {change_for(count):.2f} would show"
    if count < FEWEST:
        shows = f"with fewer than {FEWEST} no change can be told from chance"
    text = (
        f"{count} validation structures: {shows}; one of {LARGE} takes about {few} structures, one of "
        f"{SMALL} about {many} (where changes of single structures spread by {SPREAD})"
    )
    if count >= few:
        logging.info(text)
    else:
        logging.warning(
            f"{text}. So the base may be kept though something is gained: give more, or set keep=lowest"
        )


def _distances(records: Iterable[Scored]) -> NDArray[np.float64]:
    """Delta Q of each; where it is not finite, as far as any number goes in a mean of logarithms."""
    found = np.array([r.delta_q for r in records], dtype=np.float64)
    return np.where(np.isfinite(found), found, 1e6)


def mean_with_interval(
    values: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of the changes [s] of structures, and its interval by a bootstrap over them.

    The interval of a single one is infinite.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, *((mean, mean) if len(values) > 1 else (-math.inf, math.inf))
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(values)),  # resamples at a time: a few 100 MB at most
        method="percentile",
        random_state=0,
    ).confidence_interval
    return mean, float(found.low), float(found.high)


def _needed(values: NDArray[np.float64], confidence: float) -> float:
    """(z s / m)^2: structures whose mean's interval would just exclude 0."""
    mean, spread = abs(values.mean()), values.std()
    return float((_quantile(confidence) * spread / mean) ** 2) if mean > 0 else math.inf


def _quantile(confidence: float) -> float:
    """Half an interval of a normal distribution, in its standard deviations."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)
