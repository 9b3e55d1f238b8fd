"""The conditions under which tuning through relaxations can help, with what was found of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from fairchem_gdeq.diagnose.examine import IMPRECISE, RIGHT, UNFINISHED, WRONG, Finding

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
KINDS = (RIGHT, IMPRECISE, WRONG, UNFINISHED)
# Shares from which on a condition holds.
STAYING, COMPETING, MISSED, COVERED = 1 / 3, 1 / 4, 1 / 5, 1 / 2


class Share(NamedTuple):
    """How many structures of a sample have a property, and the 95% interval (Wilson) of their share."""

    those: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.those} of {self.of} ({self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True)
class Condition:
    """One of the four of Table 6.

    Attributes:
        name: of the condition.
        question: that it answers.
        share: of structures that speak for it.
        needed: share from which on it holds.
        verdict: ``holds`` or ``does not hold`` where the share's interval is on one side of ``needed``,
            else ``undecided``.
        detail: further figures, in a sentence.
    """

    name: str
    question: str
    share: Share
    needed: float
    verdict: str
    detail: str


def conditions_of(findings: Sequence[Finding]) -> list[Condition]:
    """The four, in the papers' order."""
    ends = {kind: _share(findings, partial(_ends, kind)) for kind in KINDS}
    moved = _median([f.target_moved for f in findings])
    force = _median([f.target_force_max for f in findings])
    lengths = [f.length for f in findings if f.length is not None]
    decided = [f.decided for f in findings if f.decided is not None]
    return [
        _condition(
            "right forces",
            "Do targets stay where they are when the potential relaxes them?",
            _share(findings, lambda f: f.target_stays),
            STAYING,
            f"Targets move by a median Delta Q of {moved:.2f}; the largest force there has the median "
            f"{force:.2f} eV/Angstrom.",
        ),
        _condition(
            "competing minima",
            "Are there several minima near a start?",
            _share(findings, lambda f: f.minima > 1),
            COMPETING,
            f"The median number of different ends is {_median([f.minima for f in findings]):g}.",
        ),
        _condition(
            "wrong basin",
            "Does the potential often end in a minimum that is not that of the target?",
            ends[WRONG],
            MISSED,
            f"Right are {ends[RIGHT]}, in the target's minimum and not precise {ends[IMPRECISE]}, not "
            f"finished {ends[UNFINISHED]}.",
        ),
        _condition(
            "short trajectory",
            "Is the basin decided in the first half of the way?",
            _share(findings, _early),
            COVERED,
            f"Plain steps take a median of {_median(lengths):g} where they end; the basin is decided "
            f"after a median of {_median(decided):g}.",
        ),
    ]


def _ends(kind: str, finding: Finding) -> bool:
    return finding.end == kind


def _early(finding: Finding) -> bool:
    if finding.decided is None:
        return False
    return finding.length is None or finding.decided <= finding.length / 2


def _share(findings: Sequence[Finding], true: Callable[[Finding], bool]) -> Share:
    count = sum(map(true, findings))
    interval = binomtest(count, len(findings)).proportion_ci(method="wilson")
    return Share(count, len(findings), float(interval.low), float(interval.high))


def _condition(name: str, question: str, share: Share, needed: float, detail: str) -> Condition:
    verdict = UNDECIDED
    if share.low >= needed:
        verdict = HOLDS
    elif share.high < needed:
        verdict = FAILS
    return Condition(name, question, share, needed, verdict, detail)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
