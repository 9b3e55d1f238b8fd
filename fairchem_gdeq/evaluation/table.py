"""The table of results, as it is printed and as a page shows it, with the sentences below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import Comparison
from fairchem_gdeq.evaluation.failures import of_scores, of_steps
from fairchem_gdeq.evaluation.metric import Scores, table_columns
from fairchem_gdeq.training.history import History


class ResultsTable(NamedTuple):
    """Title, headings (of several lines, some of them) and rows of cells, the model's name first."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def results_table(split: str, scores: Mapping[str, Scores], basin: Basin) -> ResultsTable:
    """One row a model, one column a metric that any of them has."""
    count = int(next(iter(scores.values()))["structures"])
    columns = [
        (name, column)
        for name, column in table_columns()
        if any(name in row for row in scores.values())
    ]
    return ResultsTable(
        f"{split} split, {count} structures",
        ["model", *(column.title(basin) for _, column in columns)],
        [
            [title, *(column.cell(name, row) for name, column in columns)]
            for title, row in scores.items()
        ],
    )


def explanations(scores: Mapping[str, Scores], history: History) -> list[str]:
    """How the numbers are to be read, and what the training cost, in sentences."""
    units = (
        "Delta Q in amu^0.5 Angstrom. MAE, MSE, ADwT as fairchem's IS2RS metrics: free atoms, rigid "
        "shifts kept. Rows of ASE: its optimizers on the base."
    )
    said = [units]
    if taken := [
        f"{name} {r['shift_removed']:.3f}" for name, r in scores.items() if r["shift_removed"]
    ]:
        said.append(
            "Delta Q is measured after removing each structure's rigid shift, in the mean (Angstrom): "
            + ", ".join(taken)
        )
    said += filter(None, (of_scores(name, row) for name, row in scores.items()))
    if steps := history.steps:
        seconds = np.array([s["train/seconds"] for s in steps])
        memory = np.array([s["train/peak_memory_mb"] for s in steps])
        said.append(
            f"training: {len(seconds)} steps, median {np.median(seconds):.1f} s and "
            f"{np.median(memory):.0f} MB (peak {memory.max():.0f} MB) per step"
        )
        said += filter(None, [of_steps(steps)])
    return said


def conclusions(history: History, comparison: Comparison | None) -> list[str]:
    """Which epoch is reported, and how it does, in sentences.

    ``comparison`` is of the tuned model with its base.
    """
    said = [history.outcome] if history.steps else []
    if comparison is not None:
        said.append(f"tuned against base, {comparison}")
    return said


def print_table(
    split: str,
    scores: Mapping[str, Scores],
    history: History,
    basin: Basin,
    comparison: Comparison | None = None,
    console: Console | None = None,
) -> None:
    """The table, and the sentences below it.

    ``console`` is where it goes, the terminal by default.
    """
    shown = results_table(split, scores, basin)
    console = console or Console(width=max(130, Console().width))
    name, *others = shown.headings
    for table in _fitting(shown.title, name, others, shown.rows, console):
        console.print(table)
    for sentence in explanations(scores, history) + conclusions(history, comparison):
        console.print(sentence, highlight=False)


def _fitting(
    title: str,
    name: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console,
) -> list[Table]:
    """One table, or as many as it takes to cut no number off; each begins with the first column."""
    table = Table(title=title, title_justify="left")
    table.add_column(name, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    unbounded = console.options.update(width=10_000)
    wide = console.measure(table, options=unbounded).maximum > console.width
    if len(headings) < 2 or not wide:
        return [table]
    half = -(-len(headings) // 2)
    first = [row[: half + 1] for row in rows]
    second = [[row[0], *row[half + 1 :]] for row in rows]
    parts = ((title, headings[:half], first), ("", headings[half:], second))
    return [
        each
        for caption, some, cells in parts
        for each in _fitting(caption, name, some, cells, console)
    ]
