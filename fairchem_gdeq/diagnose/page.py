"""What a diagnosis leaves behind: one page to look at, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fairchem_gdeq.diagnose.advice import Advice
from fairchem_gdeq.diagnose.conditions import Condition
from fairchem_gdeq.diagnose.examine import Finding
from fairchem_gdeq.diagnose.figure import findings_figure
from fairchem_gdeq.page import write

NUMBERS = "diagnosis.json"


def write_numbers(
    folder: Path,
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    advice: Advice,
    cost: Mapping[str, str],
) -> Path:
    """Write ``diagnosis.json``; returns its path.

    Args:
        folder: of the file; it is made.
        findings, conditions, advice: what was found.
        cost: of a training step, in words, by what it is of.
    """
    stored = {
        "verdict": advice.verdict,
        "settings": advice.settings,
        "remarks": advice.remarks,
        "conditions": [asdict(c) | {"share": c.share._asdict()} for c in conditions],
        "cost": dict(cost),
        "findings": [asdict(f) for f in findings],
    }
    return write.write_numbers(folder, NUMBERS, stored)


def write_diagnosis(
    folder: Path,
    title: str,
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    advice: Advice,
    cost: Mapping[str, str],
) -> Path:
    """Write ``report.html`` with the title and what ``write_numbers`` takes; returns its path."""
    return write.write_page(
        folder,
        __package__,
        "page.html",
        title=title,
        verdict=[advice.verdict],
        conditions=conditions,
        remarks=advice.remarks,
        command=command(advice),
        cost=list(cost.items()),
        figure=findings_figure(findings),
        structures=[_cells(f) for f in findings],
        numbers=NUMBERS,
    )


def command(advice: Advice) -> str:
    """Overrides for the command line."""
    return " ".join(f"{key}={value}" for key, value in advice.settings.items())


def _cells(f: Finding) -> list[str]:
    """A row of the table of structures."""
    return [
        f.sid,
        f"{f.atoms}",
        f"{f.target_force_max:.2f}",
        f"{f.target_moved:.2f}",
        f"{f.end_delta_q:.2f}",
        f.end,
        f"{f.minima}",
        "more" if f.length is None else f"{f.length}",
        "never" if f.decided is None else f"{f.decided}",
    ]
