"""Table 2 of the RelaxNet paper, as far as silicon allows: evolution, frames and structures.

    python -m benchmarks.study run relaxnet            # trains; also relaxnet_share, relaxnet_terms
    python -m benchmarks.relaxnet_tables runs/study/relaxnet

prints a line for each run in that folder: T frames, the share of the training trajectories, errors of
energies and forces on held trajectories, minutes of an epoch, and Delta Q of the test structures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairchem_gdeq.evaluation.scoring import TUNED
from fairchem_gdeq.training.same_run import KEPT

UNIT = "runner.train_eval_unit."
COLUMNS = (
    *("run", "evolution", "T", "share", "E MAE last/all (eV)", "F MAE last/all (meV/A)"),
    *("min/epoch", "Delta Q mean", "basins, dQ<2"),
)


def row_of(run: Path) -> list[str]:
    """What a finished run has in the table."""
    stored: dict[str, Any] = json.loads((run / "results" / "test.json").read_text())
    settings: dict[str, Any] = json.loads((run / "checkpoints" / KEPT).read_text())
    scores, history = stored["scores"][TUNED], stored["history"]
    seconds = sum(step["train/seconds"] for step in history["steps"])
    epochs = len(history["epochs"])
    share = next(value for key, value in settings.items() if key.endswith("trajectories.train"))
    return [
        run.name,
        settings[UNIT + "model.backbone.evolution"],
        str(settings[UNIT + "is2rs.how.frames"]),
        f"{share:g}",
        f"{scores['energy_mae_last']:.3f}/{scores['energy_mae_all']:.3f}",
        f"{1000 * scores['force_mae_last']:.1f}/{1000 * scores['force_mae_all']:.1f}",
        f"{seconds / 60 / epochs:.2f}",
        f"{scores['delta_q_mean']:.3f}",
        f"{scores['basins']:.1%}",
    ]


def rows_of(folder: Path) -> Iterator[list[str]]:
    """Of every finished run in a folder, by name.

    Raises:
        SystemExit: there is none.
    """
    runs = sorted(file.parents[1] for file in folder.glob("*/results/test.json"))
    if not runs:
        raise SystemExit(
            f"{folder}: no finished run in it (python -m benchmarks.study run relaxnet)"
        )
    yield from map(row_of, runs)


def markdown(rows: Iterator[list[str]]) -> str:
    """The table."""
    lines = [list(COLUMNS), ["---", "---", *["---:"] * (len(COLUMNS) - 2)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relaxnet_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/study/relaxnet"))
    print(markdown(rows_of(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
