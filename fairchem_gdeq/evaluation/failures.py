"""Structures of which no minimum was found, counted by cause, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.relax.causes import Cause

CAUSES = [cause for cause in Cause if cause != Cause.NONE]
# Words for what the log of a step says of structures, by its keys: that they have diverged, and that they
# gave no equilibrium gradient.
LOST = {cause.step_key: cause.words for cause in CAUSES if cause >= Cause.COLLAPSED}
WITHOUT_GRADIENT = {
    **{cause.step_key: cause.words for cause in CAUSES},
    "train/adjoint_unbounded": "singular adjoint",
    "train/adjoint_unsolved": "adjoint not solved",
}


def of_scores(name: str, scores: Scores) -> str | None:
    """Of a row of the results table, called ``name``; None where every structure has its minimum."""
    total = round(scores["structures"])
    counts = {cause.words: total * scores.get(cause.key, 0.0) for cause in CAUSES}
    said = of_counts(counts)
    return said and f"{name}: no minimum for {_sum(counts)} of {total} structures ({said})"


def of_steps(steps: Sequence[Mapping[str, float]]) -> str | None:
    """Of the steps of a training run, by their logs; None where nothing was left out of one.

    Steps of before ``train/structures`` was logged, and those on forces alone, have none.
    """
    counts = counts_of(steps, WITHOUT_GRADIENT)
    total = round(sum(step.get("train/structures", 0.0) for step in steps))
    said = of_counts(counts)
    return (
        said and f"training: {_sum(counts)} of {total} visits gave no equilibrium gradient ({said})"
    )


def counts_of(steps: Iterable[Mapping[str, float]], words: Mapping[str, str]) -> dict[str, float]:
    """Structures in the logs of steps by words: those of the keys, whose share of a step each log has."""
    logs = list(steps)
    return {
        word: sum(step.get("train/structures", 0.0) * step.get(key, 0.0) for step in logs)
        for key, word in words.items()
    }


def of_counts(counts: Mapping[str, float]) -> str:
    """Numbers of structures by the words for their cause, without zeros."""
    return ", ".join(f"{round(number)} {word}" for word, number in counts.items() if round(number))


def _sum(counts: Mapping[str, float]) -> int:
    return sum(round(number) for number in counts.values())
