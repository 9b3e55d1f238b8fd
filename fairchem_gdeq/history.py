"""What a run has seen so far: one entry per step and per validated epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Kept in every checkpoint, so that a resumed run has the whole story.

    Attributes:
        steps: log of each optimizer step.
        epochs: validation scores, with the epoch's number under ``epoch``.
        base: validation scores of the base, once they have been measured.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    base: dict[str, float] | None = None

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
        """Plain lists, for ``torch.save``."""
        return {"steps": self.steps, "epochs": self.epochs, "base": self.base}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self.base = state["base"]
