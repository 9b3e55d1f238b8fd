"""Markdown and CSV of a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.outcomes import Change, Row, Spread
from benchmarks.study.tables import Table

SPLITS = {"test": "test", "val": "validation"}


def markdown(table: Table, rows: Sequence[Row], split: str) -> str:
    """The table, with columns only where there is something in them."""
    columns = {
        f"{SPLITS[split]}, {rows[0].structures} structures": [title(row) for row in rows],
        "Delta Q mean": [number(row.mean) for row in rows],
        "median": [number(row.median) for row in rows],
        "basins, dQ<2": [number(row.basins, 1, "%") for row in rows],
        "force MAE (eV/A)": [number(row.force_mae, 4) for row in rows],
        "minutes": [number(row.minutes, 1) for row in rows],
        "peak MB": [f"{row.memory:.0f}" if row.memory else "" for row in rows],
        "log(1 + dQ) against base": [interval(row.against_base, "log") for row in rows],
        "dQ against base": [interval(row.against_base, "plain") for row in rows],
        "nearer : farther": [counts(row.against_base) for row in rows],
        f"log(1 + dQ) against {table.first}": [interval(row.against_first, "log") for row in rows],
        f"dQ against {table.first}": [interval(row.against_first, "plain") for row in rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [list(filled), ["---", *["---:"] * (len(filled) - 1)]]
    lines += [list(cells) for cells in zip(*filled.values(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def title(row: Row) -> str:
    """Its first cell."""
    if not row.arm:
        return "base"
    seeds = f"{row.seeds} seed{'s' if row.seeds > 1 else ''}"
    return ", ".join(filter(None, (row.point, row.arm, seeds)))


def number(value: Spread | None, digits: int = 3, unit: str = "") -> str:
    """Mean and sample deviation."""
    if value is None:
        return ""
    mean, deviation = value
    wide = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{wide}{unit}"


def interval(change: Change | None, which: str) -> str:
    """A mean change with its 95% interval."""
    if change is None:
        return ""
    if which == "log":
        log = change.log
        return f"{log.log_change:+.3f} ({log.log_low:+.3f} to {log.log_high:+.3f})"
    plain = change.plain
    return f"{plain.change:+.2f} ({plain.low:+.2f} to {plain.high:+.2f})"


def counts(change: Change | None) -> str:
    """How many structures are nearer, and how many farther."""
    return "" if change is None else f"{change.plain.better} : {change.plain.worse}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All numbers of the rows, in full."""
    header = ["arm", "point", "seeds", "delta_q_mean", "delta_q_mean_sd", "delta_q_median"]
    header += ["basins_percent", "level", "level_low", "level_high", "minutes", "peak_memory_mb"]
    header += ["force_mae"]
    for other in ("base", "first"):
        header += [f"{name}_against_{other}" for name in ("log", "log_low", "log_high")]
        header += [f"{name}_against_{other}" for name in ("dq", "dq_low", "dq_high")]
        header += [f"nearer_than_{other}", f"farther_than_{other}"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            minutes = row.minutes[0] if row.minutes else None
            error = row.force_mae[0] if row.force_mae else None
            cells = [row.arm or "base", row.point, row.seeds, *row.mean, row.median[0]]
            cells += [row.basins[0], *row.level, minutes, row.memory, error]
            writer.writerow(cells + _cells(row.against_base) + _cells(row.against_first))


def _cells(change: Change | None) -> list[float | int | None]:
    if change is None:
        return [None] * 8
    log, plain = change.log, change.plain
    return [
        *(log.log_change, log.log_low, log.log_high),
        *(plain.change, plain.low, plain.high),
        *(plain.better, plain.worse),
    ]
