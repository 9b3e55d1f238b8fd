"""Runs of a table, and what is kept of each."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.study.tables import HERE, Run
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

CONFIGS = HERE.parents[1] / "configs"


def run_all(runs: Iterable[Run], folder: Path, jobs: int) -> None:
    """Run what is not kept yet, in order. Runs of one seed start together, so that what else the machine
    does slows them alike.
    """
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
        *("-c", str(CONFIGS / run.config)),
        *(f"job.run_dir={place}", f"job.timestamp_id={run.name}", f"job.seed={run.seed}"),
        *run.overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / f"{run.name}.log").open("a") as log:
        subprocess.run(
            [*command, "--mode", "train"], stdout=log, stderr=log, env=environment, check=True
        )
    write(run, outcome(run, place / run.name))


def outcome(run: Run, place: Path) -> dict[str, Any]:
    """What tables are made from."""
    stored = json.loads((place / "results" / "test.json").read_text())
    history = stored["history"]
    best = stored["best_epoch"]
    steps = history["steps"]
    return {
        "arm": run.arm,
        "point": run.point,
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
        "force_mae": {
            title: stored["scores"][title].get("force_mae") for title in (BASE, TUNED)
        },  # eV/Angstrom
        "training": {
            "seconds": sum(s["train/seconds"] for s in steps),
            "seconds_per_step": statistics.median(s["train/seconds"] for s in steps),
            "peak_memory_mb": max(s["train/peak_memory_mb"] for s in steps),
            "steps": len(steps),
            "signal_steps": sum("train/delta_q_guided" in s for s in steps),
            "epoch": best["epoch"] if best else 0,
        },
    }


def write(run: Run, found: dict[str, Any]) -> None:
    """Keep it, whole or not at all."""
    run.kept.parent.mkdir(parents=True, exist_ok=True)
    part = run.kept.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n")
    part.replace(run.kept)
