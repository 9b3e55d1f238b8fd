"""A run in which too many structures diverge ends with advice, and does not go on for days."""

from __future__ import annotations

from collections import deque

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
        self._steps: deque[tuple[int, float]] = deque()

    def add(self, structures: int, share: float) -> None:
        """A step, and the share of its structures that diverged.

        Raises:
            TooManyDiverged: among the latest structures there are too many; says what to do.
        """
        self._steps.append((structures, share * structures))
        total = sum(count for count, _ in self._steps)
        while total - self._steps[0][0] >= LOOKED_AT:
            total -= self._steps.popleft()[0]
        failed = sum(failed for _, failed in self._steps)
        if total >= LOOKED_AT and failed > self.most * total:
            raise TooManyDiverged(
                f"{failed:.0f} of the latest {total} structures diverged: expected at most "
                f"{self.most:.0%} (most_diverged). Lower lr or alpha, look at the structures with --mode "
                "diagnose, or allow more with most_diverged. The checkpoints so far are kept"
            )
