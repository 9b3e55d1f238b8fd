"""A run in which too many structures diverge ends with advice, and does not go on for days.

One in which most give no equilibrium gradient is warned of: it still learns from the guidance. Where the
signal has none, they teach nothing, and count as those that diverge.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping

from fairchem_gdeq.evaluation.failures import (
    LOST,
    WITHOUT_GRADIENT,
    counts_of,
    of_counts,
)
from fairchem_gdeq.relax import Signal
from fairchem_gdeq.relax.signals.equilibrated import Equilibrated
from fairchem_gdeq.relax.signals.guided import Guided

LOOKED_AT = 100  # structures at least, before anything is said
SHARE_WITHOUT = 0.5  # without an equilibrium gradient, of which is warned


def is_guided(signal: Signal) -> bool:
    """Whether a signal learns from a structure without an equilibrium gradient; one of others may."""
    return isinstance(signal, Guided) or not isinstance(signal, Equilibrated)


class TooManyDiverged(ValueError):
    """More structures have diverged than the run allows."""


class Diverging:
    """Counts the structures of the latest steps, and those of them that diverged."""

    def __init__(self, most: float, guided: bool = True) -> None:
        """
        Args:
            most: share of the latest structures that may diverge, in [0, 1]; 1 allows all.
            guided: as ``is_guided``.
        """
        self.most, self._warned = most, False
        self._counted = LOST if guided else WITHOUT_GRADIENT
        self._what = "diverged" if guided else "taught nothing"
        self._steps: deque[Mapping[str, float]] = deque()

    def state(self) -> list[dict[str, float]]:
        """What a checkpoint holds: of the latest steps what is counted."""
        known = {"train/structures", *LOST, *WITHOUT_GRADIENT}
        return [{key: step[key] for key in known & step.keys()} for step in self._steps]

    def load(self, state: list[dict[str, float]]) -> None:
        """The inverse of ``state``."""
        self._steps = deque(state)

    def add(self, log: Mapping[str, float]) -> None:
        """The log of a step on structures, with the share of each cause.

        Raises:
            TooManyDiverged: among the latest structures there are too many; says what to do.
        """
        self._steps.append(log)
        total = sum(step["train/structures"] for step in self._steps)
        while total - self._steps[0]["train/structures"] >= LOOKED_AT:
            total -= self._steps.popleft()["train/structures"]
        if total < LOOKED_AT:
            return
        counts = counts_of(self._steps, self._counted)
        failed = sum(counts.values())
        if failed > self.most * total:
            raise TooManyDiverged(
                f"{failed:.0f} of the latest {total:.0f} structures {self._what} ({of_counts(counts)}): "
                f"expected at most {self.most:.0%} (most_diverged). Lower lr or alpha, look at the "
                "structures with --mode diagnose, or allow more with most_diverged. The checkpoints so "
                "far are kept"
            )
        without = counts_of(self._steps, WITHOUT_GRADIENT)
        if not self._warned and sum(without.values()) > SHARE_WITHOUT * total:
            self._warned = True
            logging.warning(
                f"{sum(without.values()):.0f} of the latest {total:.0f} structures gave no equilibrium "
                f"gradient ({of_counts(without)}). Where relaxations do not end, raise max_steps or "
                "fmax, or train the potential on forces first; where adjoints are not solved, raise "
                "adjoint.max_vjps or adjoint.damping"
            )
