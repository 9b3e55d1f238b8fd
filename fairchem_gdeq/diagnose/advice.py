"""Whether tuning can help, in a sentence, and settings to begin with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairchem_gdeq.diagnose.conditions import FAILS, HOLDS, Condition
from fairchem_gdeq.diagnose.examine import IMPRECISE, MARKS, RIGHT, UNFINISHED, Finding
from fairchem_gdeq.evaluation.comparison import SMALL, structures_for

# Of alpha times the stiffest curvature: above 2 plain steps grow, below 1 none turns back.
STABLE = 1.0


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        verdict: one plain sentence.
        settings: overrides of the config to begin with, by their keys.
        remarks: further sentences.
    """

    verdict: str
    settings: dict[str, Any]
    remarks: tuple[str, ...]


def advise(
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    alpha: float,
    lr: float,
    frames: bool,
) -> Advice:
    """From what was found.

    Args:
        findings: of a sample.
        conditions: theirs.
        alpha: the step that the sample was relaxed with, Angstrom per (eV/Angstrom).
        lr: the learning rate of the config, which a preset would change.
        frames: whether the config has labelled frames to train on.
    """
    settings = _settings(findings, conditions, alpha, lr, frames)
    return Advice(_verdict(findings, conditions), settings, _remarks(findings))


def _verdict(findings: Sequence[Finding], conditions: Sequence[Condition]) -> str:
    forces, minima, wrong, _ = conditions
    ends = Counter(f.end for f in findings)
    imprecise, unfinished = ends[IMPRECISE], ends[UNFINISHED]
    if unfinished >= len(findings) / 4:
        return (
            f"Look at the relaxations first: {unfinished} of {len(findings)} do not end within "
            "relaxer.max_steps, and where they would go is not known."
        )
    if forces.verdict == FAILS:
        return (
            f"Train on forces first: only {forces.share} targets stay where they are, so the potential "
            "has other minima than the reference, and choosing among them does not help much."
        )
    if wrong.verdict == FAILS:
        if imprecise >= len(findings) / 4:
            return (
                f"Only precision can be gained: {imprecise} of {len(findings)} structures end in the "
                "right minimum and not precisely there. signal=implicit is for that, and force training."
            )
        return (
            f"Tuning has little to gain: {wrong.share} structures end in a wrong basin, and "
            f"{ends[RIGHT]} where they should."
        )
    if wrong.verdict == HOLDS and forces.verdict == HOLDS:
        also = "" if minima.verdict == HOLDS else ", though few competing minima were seen"
        return f"Tuning can help: {wrong.share} structures end in a wrong basin, and targets stay{also}."
    return (
        f"Undecided with {len(findings)} structures: {wrong.share} end in a wrong basin, {forces.share} "
        "targets stay. Examine more with diagnose.structures=N."
    )


def _settings(
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    alpha: float,
    lr: float,
    frames: bool,
) -> dict[str, Any]:
    forces_first = conditions[0].verdict == FAILS
    decided = [f.decided for f in findings if f.decided is not None]
    wanted = float(np.quantile(decided, 0.8)) if decided else MARKS[3]
    if forces_first:  # ways on such forces say nothing of what comes after them
        wanted = MARKS[2]
    horizon = next((mark for mark in MARKS[2:] if mark >= wanted), MARKS[-1])
    stiff = [f.stiffest for f in findings if math.isfinite(f.stiffest)]
    chosen: dict[str, Any] = {
        "signal": "implicit" if conditions[2].verdict == FAILS else "gdeq",
        "horizon": horizon,
        "alpha": alpha,
        "spare": 0.5,
        "lr": lr,
        "preset": "full" if frames and forces_first else "small_data",
    }
    if stiff and alpha * max(stiff) > STABLE:
        digit = 10.0 ** math.floor(math.log10(STABLE / max(stiff)))
        chosen["alpha"] = float(f"{math.floor(STABLE / max(stiff) / digit) * digit:.1g}")
    return chosen


def _remarks(findings: Sequence[Finding]) -> tuple[str, ...]:
    stale = float(np.median([f.stale_force for f in findings]))
    few = (
        f"To show a mean change of {SMALL} in log(1 + Delta Q), give about {structures_for(SMALL)} "
        "validation structures."
    )
    frozen = (
        "At X_K the forces of the graph that is frozen at X_0 differ from those of a fresh one by a "
        f"median of {stale:.3f} eV/Angstrom at most."
    )
    return few, frozen
