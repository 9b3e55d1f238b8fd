"""The printed table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import Comparison
from fairchem_gdeq.evaluation.metric import Column, Scores, table_columns
from fairchem_gdeq.training.history import History


def print_table(
    split: str,
    scores: Mapping[str, Scores],
    history: History,
    basin: Basin,
    comparison: Comparison | None = None,
    console: Console | None = None,
) -> None:
    """One row a model, one column a metric that any of them has; below, the training cost and verdict.

    ``comparison`` is of the tuned model with its base.
    ``console`` is where it goes, the terminal by default.
    """
    count = int(next(iter(scores.values()))["structures"])
    columns = [
        (name, column)
        for name, column in table_columns()
        if any(name in row for row in scores.values())
    ]
    console = console or Console(width=max(130, Console().width))
    title = f"{split} split, {count} structures"
    for table in _fitting(title, columns, scores, basin, console):
        console.print(table)
    console.print(
        "Delta Q in amu^0.5 Angstrom. MAE, MSE, ADwT as fairchem's IS2RS metrics: free atoms, rigid "
        "shifts kept. Rows of ASE: its optimizers on the base.",
        highlight=False,
    )
    if taken := [
        f"{name} {r['shift_removed']:.3f}" for name, r in scores.items() if r["shift_removed"]
    ]:
        console.print(
            "Delta Q is measured after removing each structure's rigid shift, in the mean (Angstrom): "
            + ", ".join(taken),
            highlight=False,
        )
    if steps := history.steps:
        seconds = np.array([s["train/seconds"] for s in steps])
        memory = np.array([s["train/peak_memory_mb"] for s in steps])
        console.print(
            f"training: {len(seconds)} steps, median {np.median(seconds):.1f} s and "
            f"{np.median(memory):.0f} MB (peak {memory.max():.0f} MB) per step",
            highlight=False,
        )
        console.print(history.outcome, highlight=False)
    if comparison is not None:
        console.print(f"tuned against base, {comparison}", highlight=False)


def _fitting(
    title: str,
    columns: Sequence[tuple[str, Column]],
    scores: Mapping[str, Scores],
    basin: Basin,
    console: Console,
) -> list[Table]:
    """One table, or as many as it takes to cut no number off."""
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for _, column in columns:
        table.add_column(column.title(basin), justify="right")
    for name, row in scores.items():
        table.add_row(name, *(column.cell(key, row) for key, column in columns))
    unbounded = console.options.update(width=10_000)
    wide = console.measure(table, options=unbounded).maximum > console.width
    if len(columns) < 2 or not wide:
        return [table]
    half = -(-len(columns) // 2)
    parts = ((title, columns[:half]), ("", columns[half:]))
    return [each for part in parts for each in _fitting(*part, scores, basin, console)]
