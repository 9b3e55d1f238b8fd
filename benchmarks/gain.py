"""Does tuning gain, and what makes it gain? Runs of several seeds, compared structure by structure.

    python -m benchmarks.gain run TABLE              # goes on where it was; one thread a process
    python -m benchmarks.gain run TABLE --jobs 2     # two runs at a time, where a run is one process
    python -m benchmarks.gain show TABLE             # Markdown

A table (``benchmarks/gain_tables.yaml``) names a config, its seeds, and arms: overrides of the config by
name. The first arm is the one that the others are compared with. Runs of one seed start
together, so that what else the machine does slows them alike.

What a run ended with, for each structure, is kept in ``benchmarks/gain/TABLE/ARM_seedN.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.seeds import spread
from benchmarks.tables import print_rows
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End, compare
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

HERE = Path(__file__).parent
KEPT = HERE / "gain"
SPLITS = ("test", "val")
Ends = Mapping[int, "np.ndarray"]


@dataclass(frozen=True)
class Run:
    """One arm of a table with one seed.

    Attributes:
        table, arm, seed: which.
        config: a file in ``configs``.
        overrides: of it.
    """

    table: str
    arm: str
    seed: int
    config: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder and file."""
        return f"{self.arm}_seed{self.seed}"

    @property
    def kept(self) -> Path:
        """Where its outcome is kept."""
        return KEPT / self.table / f"{self.name}.json"


def runs_of(table: str, seeds: Sequence[int] | None = None) -> list[Run]:
    """The runs of a table, seed by seed.

    Raises:
        SystemExit: there is no such table.
    """
    tables = yaml.safe_load((HERE / "gain_tables.yaml").read_text())
    if table not in tables:
        raise SystemExit(f"no table {table!r}: there are {', '.join(tables)}")
    entry = tables[table]
    shared = tuple(entry.get("overrides", ()))
    return [
        Run(
            table,
            arm,
            seed,
            entry["config"],
            (*shared, *options.get("overrides", ())),
        )
        for seed in (seeds or entry["seeds"])
        for arm, options in entry["arms"].items()
    ]


# ---- running ---------------------------------------------------------------------------------


def run_all(runs: list[Run], folder: Path, jobs: int) -> None:
    """Run what is not kept yet, in order."""
    left = [run for run in runs if not run.kept.exists()]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: run_one(run, folder), left))


def run_one(run: Run, folder: Path) -> None:
    """Train, and keep the outcome.

    Raises:
        CalledProcessError: a command failed; its log is in the folder.
    """
    place = folder / run.table
    place.mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).with_name("fairchem")),
        *("-c", str(HERE.parent / "configs" / run.config)),
        *(f"job.run_dir={place}", f"job.timestamp_id={run.name}", f"job.seed={run.seed}"),
        *run.overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / f"{run.name}.log").open("a") as log:
        subprocess.run(
            [*command, "--mode", "train"], stdout=log, stderr=log, env=environment, check=True
        )
    keep(run, place / run.name)


def keep(run: Run, place: Path) -> None:
    """Write the small file that tables are made from."""
    stored = json.loads((place / "results" / "test.json").read_text())
    history = stored["history"]
    best = stored["best_epoch"]
    steps = history["steps"]
    found = {
        "arm": run.arm,
        "seed": run.seed,
        "overrides": list(run.overrides),
        "test": {
            title: [[r["row"], r["delta_q"], r["evaluations"]] for r in stored["records"][title]]
            for title in (BASE, TUNED)
        },
        "val": {
            BASE: [[row, far] for row, far, _ in history["base_ends"]],
            TUNED: [[row, far] for row, far, _ in (best["ends"] if best else history["base_ends"])],
        },
        "training": {
            "seconds": sum(s["train/seconds"] for s in steps),
            "steps": len(steps),
            "signal_steps": sum("train/delta_q_guided" in s for s in steps),
            "epoch": best["epoch"] if best else 0,
        },
    }
    run.kept.parent.mkdir(parents=True, exist_ok=True)
    part = run.kept.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n")
    part.replace(run.kept)


# ---- showing ---------------------------------------------------------------------------------


def over_seeds(outcomes: Sequence[Mapping[str, Any]], split: str, title: str) -> Ends:
    """Delta Q [seeds] of each row."""
    found: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for row, distance, *_ in outcome[split][title]:
            found[row].append(distance)
    return {row: np.array(distances) for row, distances in found.items()}


def cells(ends: Ends) -> list[str]:
    """Mean, median and share of right basins: mean and sample deviation over seeds."""
    seeds = np.array(list(ends.values())).T
    found = {
        "mean": seeds.mean(1),
        "median": np.median(seeds, axis=1),
        "basins": 100 * (seeds < Basin().delta_q).mean(1),
    }
    return [spread(values.tolist()) for values in found.values()]


def rows_of(table: str, split: str) -> Iterator[tuple[str, list[str]]]:
    """A row for the base and for each arm that has outcomes."""
    outcomes: dict[str, list] = defaultdict(list)
    for run in runs_of(table):
        if run.kept.exists():
            outcomes[run.arm].append(json.loads(run.kept.read_text()))
    if not outcomes:
        raise SystemExit(
            f"nothing is kept of table {table} yet: python -m benchmarks.gain run {table}"
        )
    first = next(iter(outcomes))
    base = over_seeds(outcomes[first][:1], split, BASE)
    yield BASE, [*cells(base), "", "", ""]
    reference = over_seeds(outcomes[first], split, TUNED)
    for arm, found in outcomes.items():
        ends = over_seeds(found, split, TUNED)
        minutes = spread([o["training"]["seconds"] / 60 for o in found])
        against = "" if arm == first else paired(reference, ends)
        title = f"{arm}, {len(found)} seed{'s' if len(found) > 1 else ''}"
        yield title, [*cells(ends), minutes, paired(base, ends), against]


def paired(before: Ends, after: Ends) -> str:
    """The change structure by structure: of log(1 + Delta Q), and of Delta Q, averaged over seeds."""
    logs = compare(*(_averaged(r, np.log1p, np.expm1) for r in (before, after)), Basin())
    plain = compare(*(_averaged(r, np.asarray, float) for r in (before, after)), Basin())
    return (
        f"{logs.log_change:+.3f} ({logs.log_low:+.3f}, {logs.log_high:+.3f}); dQ {plain.change:+.2f} "
        f"({plain.low:+.2f}, {plain.high:+.2f}); {plain.better}:{plain.worse}"
    )


def _averaged(ends: Ends, there: Any, back: Any) -> list[End]:
    """An end for each row, whose Delta Q is an average over seeds."""
    return [End(row, float(back(there(found).mean())), False) for row, found in ends.items()]


def show(table: str, split: str) -> None:
    """Print the table."""
    rows = dict(rows_of(table, split))
    header = [f"{table}, {split}", "Delta Q mean", "median", "basins %", "minutes"]
    header += ["log(1 + dQ) against base", "against the first arm"]
    print_rows(header, rows, (), lambda name: " | ".join(rows[name]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("table")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the table")
    parser.add_argument("--arms", nargs="+", help="default: those of the table")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/gain"), help="of the runs")
    parser.add_argument("--split", choices=SPLITS, default="test", help="shown")
    arguments = parser.parse_args()
    if arguments.action == "run":
        runs = runs_of(arguments.table, arguments.seeds)
        wanted = [run for run in runs if run.arm in (arguments.arms or [run.arm])]
        run_all(wanted, arguments.folder, arguments.jobs)
    show(arguments.table, arguments.split)


if __name__ == "__main__":
    main()
