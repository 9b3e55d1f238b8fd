"""Structures of which no minimum was found, counted by cause, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.relax.causes import Cause

CAUSES = [cause for cause in Cause if cause != Cause.NONE]
LOST = [cause for cause in Cause if cause >= Cause.COLLAPSED]
ADJOINTS = {  # what the log of a step says of an equilibrium gradient that was not used
    "train/adjoint_unbounded": "singular adjoint",
    "train/adjoint_unsolved": "adjoint not solved",
}


def name_of(cause: Cause) -> str:
    """The key of its share of the structures, in scores and after ``train/`` in the log of a step."""
    return cause.name.lower()


def of_scores(name: str, scores: Scores) -> str | None:
    """Of a row of the results table, called ``name``; None where every structure has its minimum."""
    total = round(scores["structures"])
    counts = {cause.words: total * scores.get(name_of(cause), 0.0) for cause in CAUSES}
    said = of_counts(counts)
    return said and f"{name}: no minimum for {_sum(counts)} of {total} structures ({said})"


def of_steps(steps: Sequence[Mapping[str, float]]) -> str | None:
    """Of the steps of a training run, by their logs; None where nothing was left out of one.

    Steps of before ``train/structures`` was logged, and those on forces alone, have none.
    """
    counts = counts_of(steps)
    total = round(sum(step.get("train/structures", 0.0) for step in steps))
    said = of_counts(counts)
    return (
        said and f"training: {_sum(counts)} of {total} visits gave no equilibrium gradient ({said})"
    )


def counts_of(
    steps: Iterable[Mapping[str, float]], causes: Iterable[Cause] = ()
) -> dict[str, float]:
    """Structures in the logs of steps by the words for why they gave no equilibrium gradient.

    ``causes`` leaves out all others, and adjoints.
    """
    words = {f"train/{name_of(cause)}": cause.words for cause in causes or CAUSES}
    if not causes:
        words |= ADJOINTS
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
