"""Any two rows, structure by structure: of other tables, at other points, or two seeds of one row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.study.outcomes import Change, change, over_seeds
from benchmarks.study.showing import SPLITS, counts, interval
from benchmarks.study.tables import Table
from fairchem_gdeq.evaluation.scoring import TUNED


def named(name: str, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Outcomes of ``TABLE/ARM``, ``TABLE/ARM_POINT`` or, of one seed, ``TABLE/ARM_seedN``.

    Raises:
        SystemExit: there are none; says what there is.
    """
    table, _, wanted = name.partition("/")
    if table not in tables:
        raise SystemExit(f"{name}: expected TABLE/ARM, of {', '.join(tables)}")
    runs = [run for run in tables[table].runs() if run.kept.exists()]
    chosen = [run for run in runs if wanted in (run.name, run.name.rpartition("_")[0])]
    if not chosen:
        known = ", ".join(sorted({run.name.rpartition("_")[0] for run in runs}))
        raise SystemExit(f"{name}: nothing of that name is kept in {table}; there are {known}")
    return [json.loads(run.kept.read_text()) for run in chosen]


def between(first: str, second: str, tables: Mapping[str, Table]) -> dict[str, Change]:
    """What changes from the first row to the second, by split.

    Raises:
        SystemExit: one of them is not kept, or they have other structures.
    """
    kept = [named(name, tables) for name in (first, second)]
    found = {}
    for split in SPLITS:
        ends = [over_seeds(outcomes, split, TUNED) for outcomes in kept]
        if ends[0].keys() != ends[1].keys():
            raise SystemExit(
                f"{first} and {second}: the {SPLITS[split]} structures are not the same"
            )
        found[split] = change(*ends)
    return found


def markdown(first: str, second: str, tables: Mapping[str, Table]) -> str:
    """A row for each split."""
    lines = [
        f"| `{second}` against `{first}` | log(1 + dQ) | dQ | nearer : farther |",
        "| --- | ---: | ---: | ---: |",
    ]
    for split, moved in between(first, second, tables).items():
        cells = [SPLITS[split], interval(moved, "log"), interval(moved, "plain"), counts(moved)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
