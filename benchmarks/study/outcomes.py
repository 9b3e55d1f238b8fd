"""What runs ended with, and how arms compare: numbers, before anything is formatted."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.tables import Table
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import Comparison, End, compare
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

Ends = Mapping[int, NDArray[np.float64]]
Spread = tuple[float, float | None]  # mean, and sample deviation where there are several


@dataclass(frozen=True)
class Change:
    """From one model's ends to another's, each averaged over its seeds structure by structure.

    Attributes:
        log: of log(1 + Delta Q), Delta Q in amu^0.5 Angstrom.
        plain: of Delta Q.
    """

    log: Comparison
    plain: Comparison


@dataclass(frozen=True)
class Row:
    """The base, or an arm at a point.

    Attributes:
        arm, point: which; both empty for the base.
        seeds, structures: number of runs, and of structures that each is scored on.
        mean, median: of Delta Q, amu^0.5 Angstrom; over seeds.
        basins: share of Delta Q below 2, in percent.
        level: mean of log(1 + Delta Q), over structures and seeds, and its 95% interval by bootstrap.
        minutes, memory: of training, where it was kept: minutes in all, highest peak in MB.
        force_mae: on held frames, eV/Angstrom, of the seeds in which they were asked for.
        against_base, against_first: changes; None for the base and the first arm.
    """

    arm: str
    point: str
    seeds: int
    structures: int
    mean: Spread
    median: Spread
    basins: Spread
    level: tuple[float, float, float]
    minutes: Spread | None = None
    memory: float | None = None
    force_mae: Spread | None = None
    against_base: Change | None = None
    against_first: Change | None = None


def rows_of(table: Table, split: str) -> Iterator[Row]:
    """The base, and each arm at each point of which outcomes are kept.

    Raises:
        SystemExit: there are none.
    """
    base: Ends | None = None
    for point in table.points:
        first: Ends | None = None
        for arm in table.every:
            found = kept(table, arm, point)
            if not found:
                continue
            if base is None:
                base = over_seeds(found[:1], split, BASE)
                yield Row("", "", 1, len(base), *scores(base), force_mae=_error_of_base(table))
            ends = over_seeds(found, split, TUNED)
            if arm == table.first:
                first = ends
            yield Row(
                arm,
                point,
                len(found),
                len(ends),
                *scores(ends),
                **_training(found),
                against_base=change(base, ends),
                against_first=None if first is None or arm == table.first else change(first, ends),
            )
    if base is None:
        raise SystemExit(
            f"nothing is kept of table {table.name} yet: python -m benchmarks.study run {table.name}"
        )


def kept(table: Table, arm: str, point: str) -> list[dict[str, Any]]:
    """Outcomes of an arm's seeds."""
    files = [table.run(arm, point, seed).kept for seed in table.seeds]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def over_seeds(outcomes: Sequence[Mapping[str, Any]], split: str, title: str) -> Ends:
    """Delta Q [seeds] of each row."""
    found: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for row, distance, *_ in outcome[split][title]:
            found[row].append(distance)
    return {row: np.array(distances) for row, distances in found.items()}


def scores(ends: Ends) -> tuple[Spread, Spread, Spread, tuple[float, float, float]]:
    """Mean, median, basins and level of a Row."""
    seeds = np.array(list(ends.values())).T
    mean, median = seeds.mean(1), np.median(seeds, axis=1)
    right = 100 * (seeds < Basin().delta_q).mean(1)
    return spread(mean), spread(median), spread(right), level(ends)


def level(ends: Ends, resamples: int = 10_000) -> tuple[float, float, float]:
    """Mean of log(1 + Delta Q), and where 95% of its bootstraps over structures lie."""
    values = np.array([np.log1p(distances).mean() for distances in ends.values()])
    drawn = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def spread(values: Sequence[float] | NDArray[np.float64]) -> Spread:
    """Mean, and sample deviation where there is one."""
    listed = [float(value) for value in values]
    return statistics.mean(listed), statistics.stdev(listed) if len(listed) > 1 else None


def change(before: Ends, after: Ends) -> Change:
    """Structure by structure."""
    logs = compare(*(_averaged(ends, np.log1p, np.expm1) for ends in (before, after)), Basin())
    plain = compare(*(_averaged(ends, np.asarray, np.asarray) for ends in (before, after)), Basin())
    return Change(logs, plain)


def _averaged(ends: Ends, there: Callable[[Any], Any], back: Callable[[Any], Any]) -> list[End]:
    """An end for each row, whose Delta Q is an average over seeds."""
    return [End(row, float(back(there(found).mean())), False) for row, found in ends.items()]


def _error_of_base(table: Table) -> Spread | None:
    """On held frames, which not every arm has."""
    for arm in table.every:
        for point in table.points:
            for outcome in kept(table, arm, point):
                if error := outcome.get("force_mae", {}).get(BASE):
                    return error, None
    return None


def _training(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What training took, and what it did to forces."""
    trained = [outcome["training"] for outcome in found]
    errors = [error for each in found if (error := each.get("force_mae", {}).get(TUNED))]
    return {
        "minutes": spread([each["seconds"] / 60 for each in trained]),
        "memory": max(each.get("peak_memory_mb", 0) for each in trained) or None,
        "force_mae": spread(errors) if errors else None,
    }
