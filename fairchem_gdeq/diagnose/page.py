"""What a diagnosis leaves behind: one page to look at, and the same as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
from jinja2 import Environment, PackageLoader

from fairchem_gdeq.diagnose.advice import Advice
from fairchem_gdeq.diagnose.conditions import KINDS, Condition
from fairchem_gdeq.diagnose.examine import Finding

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_page(
    folder: Path,
    title: str,
    findings: Sequence[Finding],
    conditions: Sequence[Condition],
    advice: Advice,
    cost: Mapping[str, str],
) -> list[Path]:
    """Write ``diagnosis.html`` and ``diagnosis.json``; returns their paths.

    Args:
        folder: of the files; it is made.
        title: of the page.
        findings, conditions, advice: what was found.
        cost: of a training step, in words, by what it is of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = Environment(loader=PackageLoader("fairchem_gdeq.diagnose", ""), autoescape=True)
    text = pages.get_template("page.html").render(
        title=title,
        findings=findings,
        conditions=conditions,
        advice=advice,
        cost=cost,
        command=command(advice),
        picture=_picture(findings),
    )
    page, numbers = folder / "diagnosis.html", folder / "diagnosis.json"
    page.write_text(text)
    stored = {
        "verdict": advice.verdict,
        "settings": advice.settings,
        "remarks": advice.remarks,
        "conditions": [asdict(c) | {"share": c.share._asdict()} for c in conditions],
        "cost": dict(cost),
        "findings": [asdict(f) for f in findings],
    }
    numbers.write_text(json.dumps(stored, indent=1) + "\n")
    return [page, numbers]


def command(advice: Advice) -> str:
    """Overrides for the command line."""
    return " ".join(f"{key}={value}" for key, value in advice.settings.items())


def _picture(findings: Sequence[Finding]) -> str:
    """Four panels as a PNG in base64."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    by_kind = [[f.end_delta_q for f in findings if f.end == kind] for kind in KINDS]
    axes[0, 0].hist(by_kind, bins=20, stacked=True, label=KINDS)
    axes[0, 0].set(xlabel=r"$\Delta Q$ of the ends (amu$^{1/2}$ Å)", ylabel="structures")
    axes[0, 0].legend()
    axes[0, 1].scatter(
        [f.target_force_max for f in findings], [f.target_moved for f in findings], s=14
    )
    axes[0, 1].set(
        xlabel="largest force at the target (eV/Å)",
        ylabel=r"target moves by $\Delta Q$ (amu$^{1/2}$ Å)",
    )
    ways = [(f.length, f.decided) for f in findings if f.length and f.decided is not None]
    axes[1, 0].scatter([way[0] for way in ways], [way[1] for way in ways], s=14)
    axes[1, 0].set(xlabel="plain steps to the end", ylabel="basin decided after")
    known = [f.stiffest for f in findings if f.stiffest == f.stiffest]
    axes[1, 1].hist(known, bins=20)
    axes[1, 1].set(xlabel="stiffest curvature (eV/Å²)", ylabel="structures")
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(held.getvalue()).decode()
