"""Runs made a second time, by chance one of each table: does a table say what its command gives today?

Code has changed since most runs were made, and rounding with it, so ends are compared structure by
structure, like those of two arms.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.outcomes import Change, change, over_seeds
from benchmarks.study.running import trained, write
from benchmarks.study.showing import counts, interval
from benchmarks.study.tables import HERE, Run, Table
from fairchem_gdeq.evaluation.scoring import TUNED

AGAIN = HERE / "again"


@dataclass(frozen=True)
class Repeat:
    """What a run ended with, both times, on the test split.

    Attributes:
        run: which.
        then, now: its mean Delta Q, amu^0.5 Angstrom.
        others: those of the other seeds of its row.
        moved: from the first time to the second.
    """

    run: Run
    then: float
    now: float
    others: tuple[float, ...]
    moved: Change


def made(table: Table) -> list[Run]:
    """Those of its runs that were made again."""
    return [run for run in table.runs() if place(run).exists()]


def drawn(table: Table, draw: int) -> Run:
    """One of the runs that are kept.

    Args:
        draw: another number draws another one.

    Raises:
        SystemExit: none is kept.
    """
    runs = [run for run in table.runs() if run.kept.exists()]
    if not runs:
        raise SystemExit(f"{table.name}: none of its runs is kept, so none can be made again")
    return random.Random(f"{draw} {table.name}").choice(runs)


def place(run: Run) -> Path:
    """Where its second outcome is kept."""
    return AGAIN / run.table / run.kept.name


def make(run: Run, folder: Path) -> None:
    """Train it again, in a folder of its own, and keep the outcome."""
    write(place(run), trained(run, folder / "again"))


def repeats(tables: Mapping[str, Table]) -> Iterator[Repeat]:
    """Of all tables."""
    for table in tables.values():
        for run in made(table):
            first, second = (_read(file) for file in (run.kept, place(run)))
            then, now = (over_seeds([outcome], "test", TUNED) for outcome in (first, second))
            others = tuple(
                _mean(_read(other.kept))
                for seed in table.seeds
                if seed != run.seed and (other := table.run(run.arm, run.point, seed)).kept.exists()
            )
            yield Repeat(run, _mean(first), _mean(second), others, change(then, now))


def markdown(tables: Mapping[str, Table]) -> str:
    """A row for each."""
    header = ["table", "run", "Delta Q mean then", "again", "other seeds"]
    header += ["log(1 + dQ), again against then", "nearer : farther"]
    lines = [f"| {' | '.join(header)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for each in repeats(tables):
        cells = [
            f"`{each.run.table}`",
            f"`{each.run.name}`",
            f"{each.then:.3f}",
            f"{each.now:.3f}",
            ", ".join(f"{other:.3f}" for other in each.others),
            interval(each.moved, "log"),
            counts(each.moved),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(file: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(file.read_text())
    return outcome


def _mean(outcome: Mapping[str, Any]) -> float:
    return statistics.mean(float(distance) for _, distance, *_ in outcome["test"][TUNED])
