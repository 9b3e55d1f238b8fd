"""A picture of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.study.outcomes import Row
from benchmarks.study.showing import title
from benchmarks.study.tables import Table

MARKERS = "soD^vP"
LEVEL = "mean of log(1 + Delta Q)"


def draw(table: Table, rows: Sequence[Row], path: Path) -> None:
    """Curves over the points of a table; without points, the change of each arm against the base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    (curves if table.point else bars)(axes, table, rows)
    figure.savefig(path, dpi=150)


def curves(axes, table: Table, rows: Sequence[Row]) -> None:
    """The level of each arm over the points, with 95% intervals; points are numbers."""
    axes.axhline(rows[0].level[0], color="black", linestyle=":", label="base")
    for index, arm in enumerate(table.every):
        found = [row for row in rows if row.arm == arm]
        if not found:
            continue
        middle, low, high = np.array([row.level for row in found]).T
        aside = 1.02 ** (index - len(table.every) / 2)  # so that intervals can be told apart
        places = [float(row.point) * aside for row in found]
        axes.errorbar(
            places,
            middle,
            [middle - low, high - middle],
            marker=MARKERS[index],
            capsize=3,
            label=arm,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([float(point) for point in table.points], list(table.points))
    axes.minorticks_off()
    axes.set_xlabel(table.point)
    axes.set_ylabel(f"{LEVEL}, {rows[0].structures} structures")
    axes.legend()


def bars(axes, table: Table, rows: Sequence[Row]) -> None:
    """Change of the level against the base, with 95% intervals."""
    changes = [(title(row), row.against_base.log) for row in rows if row.against_base]
    for place, (_, log) in enumerate(changes):
        spread = [[log.log_change - log.log_low], [log.log_high - log.log_change]]
        axes.errorbar(log.log_change, place, xerr=spread, marker="o", capsize=3, color="tab:blue")
    axes.axvline(0, color="black", linestyle=":")
    axes.set_yticks(range(len(changes)), [name for name, _ in changes])
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.set_xlabel(f"{LEVEL} against the base, {rows[0].structures} structures")
