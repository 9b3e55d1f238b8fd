"""What a run has seen so far: one entry per step and per validated epoch."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

STEPS = "history.jsonl"
STATE = "gdeq_state.pt"  # beside a checkpoint: what fairchem's own has no place for


class History:
    """Steps are lines of a file beside the checkpoints, which hold the rest.

    Attributes:
        last: log of the latest step, None before the first.
        epochs: validation scores, with the epoch's number under ``epoch``.
        base: validation scores of the base, once they have been measured.
    """

    def __init__(self) -> None:
        """Without a file, steps are not kept but for the last."""
        self.last: dict[str, float] | None = None
        self.epochs: list[dict[str, float]] = []
        self.base: dict[str, float] | None = None
        self._path: Path | None = None

    def open(self, folder: Path, done: int, first: int = 0) -> None:
        """Keep the steps in ``folder/history.jsonl``, and of those there the ``done`` first of the run.

        Later ones, by their ``train/step``, were taken after the checkpoint and are taken again.
        One process alone may open a file.

        Args:
            folder: of the file.
            done: number of steps that the checkpoint has seen.
            first: number of the run's first step.
        """
        path = folder / STEPS
        found = _read(path) if path.is_file() else []
        kept = [step for step in found if step["train/step"] < first + done]
        if len(kept) < done:
            logging.warning(
                f"{path} has {len(kept)} steps, and the checkpoint is of {done} steps: tables and "
                "pictures will miss the others"
            )
        self._write(path, kept)

    def take_over(self, folder: Path, steps: list[dict[str, float]]) -> None:
        """As ``open``, with the steps that a checkpoint from before the file holds itself."""
        self._write(folder / STEPS, steps)

    def _write(self, path: Path, steps: list[dict[str, float]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(json.dumps(step) + "\n" for step in steps))
        part.replace(path)
        self._path, self.last = path, steps[-1] if steps else None

    def add_step(self, log: dict[str, float]) -> None:
        """The log of an optimizer step."""
        self.last = log
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(log) + "\n")

    @property
    def steps(self) -> list[dict[str, float]]:
        """Logs of all steps, as the file has them now."""
        if self._path is None:
            return []
        return _read(self._path)

    def add_epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Scores of an epoch; a repeat after a resume replaces what was there."""
        self.epochs = [e for e in self.epochs if e["epoch"] != epoch]
        self.epochs.append({"epoch": epoch, **scores})

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch with the lowest mean validation Delta Q; the earliest of equals."""
        finite = [e for e in self.epochs if math.isfinite(e["delta_q_mean"])]
        return min(finite, key=lambda e: e["delta_q_mean"]) if finite else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"epochs": self.epochs, "base": self.base}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.epochs, self.base = list(state["epochs"]), state["base"]


def _read(path: Path) -> list[dict[str, float]]:
    """The steps of a file, without lines that a kill has cut short."""
    steps = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            logging.warning(f"{path}: a line that was not written to its end is left out")
    return steps
