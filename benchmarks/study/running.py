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

ROOT = HERE.parents[1]
CONFIGS = ROOT / "configs"
# Of each line of fairchem-core; the first cannot be installed beside the second.
PROGRAMS = {
    2: Path(sys.executable).with_name("fairchem"),
    1: ROOT / ".nox" / "fairchem1" / "bin" / "fairchem",
}


def run_all(runs: Iterable[Run], folder: Path, jobs: int) -> None:
    """Run what is not kept yet, in order. Runs of one seed start together, so that what else the machine
    does slows them alike.
    """
    left = [run for run in runs if not run.kept.exists()]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: run_one(run, folder), left))


def run_one(run: Run, folder: Path) -> None:
    """Train, and keep the outcome."""
    write(run.kept, trained(run, folder))


def trained(run: Run, folder: Path) -> dict[str, Any]:
    """Its outcome.

    Raises:
        CalledProcessError: a command failed; its log is in the folder.
        SystemExit: fairchem 1 is not installed.
    """
    place = folder / run.table
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / f"{run.name}.log").open("a") as log:
        subprocess.run(command(run, place), stdout=log, stderr=log, env=environment, check=True)
    return outcome(run, json.loads(results(run, place).read_text()))


def command(run: Run, place: Path) -> list[str]:
    """That trains it, with its folders in ``place``.

    Raises:
        SystemExit: fairchem 1 is not installed.
    """
    program, config = PROGRAMS[run.fairchem], CONFIGS / run.config
    if run.fairchem == 2:
        keys = [f"job.run_dir={place}", f"job.timestamp_id={run.name}", f"job.seed={run.seed}"]
        return [str(program), "-c", str(config), *keys, *run.overrides, "--mode", "train"]
    if not program.exists():
        raise SystemExit(
            f"{run.table} is of fairchem-core 1.10, and {program} is not there: "
            "nox -s fairchem1 --install-only"
        )
    keys = [f"--run-dir={place}", f"--task.run_id={run.name}", f"--seed={run.seed}"]
    return [str(program), "--mode=train", "--cpu", f"--config-yml={config}", *keys, *run.overrides]


def results(run: Run, place: Path) -> Path:
    """The table that training ends with."""
    folder = place / run.name / "results" if run.fairchem == 2 else place / "results" / run.name
    return folder / "test.json"


def outcome(run: Run, stored: dict[str, Any]) -> dict[str, Any]:
    """What tables are made from, of the table of a run."""
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


def write(kept: Path, found: dict[str, Any]) -> None:
    """Keep it, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n")
    part.replace(kept)
