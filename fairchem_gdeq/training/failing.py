"""A run in which too many structures diverge ends with advice, and does not go on for days."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from fairchem_gdeq.evaluation.failures import LOST, name_of, of_counts

LOOKED_AT = 100  # structures at least, before anything is said


class TooManyDiverged(ValueError):
    """More structures have diverged than the run allows."""


class Diverging:
    """Counts the structures of the latest steps, and those of them that diverged."""

    def __init__(self, most: float) -> None:
        """
        Args:
            most: share of the latest structures that may diverge, in [0, 1]; 1 allows all.
        """
        self.most = most
        self._steps: deque[Mapping[str, float]] = deque()

    def add(self, log: Mapping[str, float]) -> None:
        """The log of a step on structures, with the share of each cause.

        Raises:
            TooManyDiverged: among the latest structures there are too many; says what to do.
        """
        self._steps.append(log)
        total = sum(step["train/structures"] for step in self._steps)
        while total - self._steps[0]["train/structures"] >= LOOKED_AT:
            total -= self._steps.popleft()["train/structures"]
        counts = {
            cause.words: sum(
                step["train/structures"] * step[f"train/{name_of(cause)}"] for step in self._steps
            )
            for cause in LOST
        }
        failed = sum(counts.values())
        if total >= LOOKED_AT and failed > self.most * total:
            raise TooManyDiverged(
                f"{failed:.0f} of the latest {total:.0f} structures diverged ({of_counts(counts)}): "
                f"expected at most {self.most:.0%} (most_diverged). Lower lr or alpha, look at the "
                "structures with --mode diagnose, or allow more with most_diverged. The checkpoints so "
                "far are kept"
            )
