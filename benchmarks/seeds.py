"""Runs of several seeds against one another:
``python -m benchmarks.seeds runs/si/gdeq_full_seed*/results/test.json``.

Scores of each tuned model with mean and sample deviation, beside the base, and which structures end in
the right basin with every seed, with none, or with some: what no seed mends is not left to chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.tables import print_rows
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

SCORES = {
    "Delta Q mean": "delta_q_mean",
    "median": "delta_q_median",
    "basins": "basins",
    "basins, dQ<3": "basins_paper",
    "converged": "converged",
    "evaluations": "evaluations",
}


def spread(values: list[float]) -> str:
    """Mean, and sample deviation where there is one."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.3f}"


def score_rows(runs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """A row for the base, each run and their mean."""
    tuned = {name: run["scores"][TUNED] for name, run in runs.items()}
    scores = {BASE: next(iter(runs.values()))["scores"][BASE]} | tuned
    rows = {name: [f"{s[key]:.3f}" for key in SCORES.values()] for name, s in scores.items()}
    return rows | {"mean": [spread([s[key] for s in tuned.values()]) for key in SCORES.values()]}


def agreement(runs: dict[str, dict[str, Any]], threshold: float) -> dict[str, list[str]]:
    """Structures right with every run, some or none: how many, and their part of mean Delta Q."""
    ends: dict[tuple[str, int], list[float]] = {}
    for run in runs.values():
        for record in run["records"][TUNED]:
            ends.setdefault((record["sid"], record["row"]), []).append(record["delta_q"])
    groups: dict[str, list[float]] = {"every run": [], "some": [], "none": []}
    for values in ends.values():
        right = sum(value < threshold for value in values)
        group = "every run" if right == len(values) else "some" if right else "none"
        groups[group].append(statistics.mean(values))
    return {name: [str(len(v)), f"{sum(v) / len(ends):.3f}"] for name, v in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="test.json of runs on one split")
    files = parser.parse_args().results
    runs = {file.parents[1].name: json.loads(file.read_text()) for file in files}
    scores, agreed = score_rows(runs), agreement(runs, Basin().delta_q)
    print_rows(["run", *SCORES], scores, (), lambda name: " | ".join(scores[name]))
    print()
    header = ["right with", "structures", "of the mean"]
    print_rows(header, agreed, (), lambda name: " | ".join(agreed[name]))


if __name__ == "__main__":
    main()
