"""What an audit leaves behind: one page to look at, and the same as JSON."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fairchem_gdeq.audit.dimers import Curve
from fairchem_gdeq.audit.dynamics import Run
from fairchem_gdeq.audit.rows import Row
from fairchem_gdeq.page import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUMBERS = "audit.json"
SHOWN = 9  # pairs of elements in the picture
NAMES, COLOURS = ("base", "tuned"), ("#aaaaaa", "#3366cc")


def write_numbers(
    folder: Path,
    verdict: str,
    rows: Sequence[Row],
    curves: Sequence[Sequence[Curve]],
    runs: Sequence[Sequence[Run]],
) -> Path:
    """Write ``audit.json``; returns its path.

    Args:
        folder: of the file; it is made.
        verdict: all rows in a sentence.
        rows: of the table.
        curves, runs: of the base and of the tuned model.
    """
    stored = {
        "verdict": verdict,
        "rows": [asdict(row) for row in rows],
        "dimers": {name: [_plain(c) for c in of] for name, of in _named(curves)},
        "dynamics": {name: [_plain(r) for r in of] for name, of in _named(runs)},
    }
    return write.write_numbers(folder, NUMBERS, stored)


def write_audit(
    folder: Path,
    title: str,
    verdict: str,
    rows: Sequence[Row],
    curves: Sequence[Sequence[Curve]],
    runs: Sequence[Sequence[Run]],
) -> Path:
    """Write ``report.html`` with the title and what ``write_numbers`` takes; returns its path."""
    return write.write_page(
        folder,
        __package__,
        "page.html",
        title=title,
        verdict=[verdict],
        checks={check: [r for r in rows if r.check == check] for check in (r.check for r in rows)},
        number=number,
        pairs=[_cells(*both) for both in _most_changed(*curves)],
        dimers=_picture_of_dimers(*curves) if curves[0] else None,
        dynamics=_picture_of_runs(*runs) if runs[0] else None,
        numbers=NUMBERS,
    )


def number(value: float | None) -> str:
    """As it stands in the table; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _named(both: Sequence[Any]) -> zip[tuple[str, Any]]:
    return zip(NAMES, both, strict=True)


def _plain(measured: Curve | Run) -> dict[str, Any]:
    """For JSON."""
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in asdict(measured).items()
    }


def _cells(old: Curve, new: Curve) -> list[str]:
    """A row of the table of pairs."""
    lengths = (old.contact, old.repels_from, new.repels_from)
    return [old.name, *map(number, lengths), f"{old.turns}", f"{new.turns}"]


def _most_changed(base: Sequence[Curve], tuned: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Curves of the pairs that have changed most nearer than contact, first of all by new holes."""

    def change(both: tuple[Curve, Curve]) -> tuple[float, float, float]:
        old, new = both
        return (
            float(new.hole) - float(old.hole),
            abs(new.repels_from - old.repels_from),
            float(np.abs(new.forces - old.forces).max()),
        )

    return sorted(zip(base, tuned, strict=True), key=change, reverse=True)


def _picture_of_dimers(base: Sequence[Curve], tuned: Sequence[Curve]) -> str:
    """Curves of some pairs as a PNG in base64."""
    shown = _most_changed(base, tuned)[:SHOWN]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3 * columns, 2.4 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, both in zip(axes.flat, shown, strict=False):
        for curve, colour, name, width in zip(both, COLOURS, NAMES, (3.0, 1.2), strict=True):
            axis.plot(curve.distances, curve.forces, color=colour, label=name, linewidth=width)
        axis.axvline(both[0].contact, color="#cccccc", linewidth=1)
        axis.axhline(0.0, color="#cccccc", linewidth=1)
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set_title(both[0].name, fontsize=10)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("distance (Å)")
    figure.supylabel("repulsion (eV/Å)")
    return _encoded(figure)


def _picture_of_runs(base: Sequence[Run], tuned: Sequence[Run]) -> str:
    """Temperatures and energies of all runs as a PNG in base64."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for runs, colour, name in zip((base, tuned), COLOURS, NAMES, strict=True):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            axes[0].plot(run.times, run.kelvin, color=colour, linewidth=0.8, label=label)
            axes[1].plot([0, *run.marks], [0, *(1000 * run.made)], "o-", color=colour, markersize=3)
    axes[0].set(xlabel="time (ps)", ylabel="temperature (K)")
    axes[1].set(xlabel="time (ps)", ylabel="energy from nothing (meV/atom)")
    axes[0].legend()
    return _encoded(figure)


def _encoded(figure: Figure) -> str:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(held.getvalue()).decode()
