"""What the viewer of a page is given: structures at their places, with what is said about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from fairchem_gdeq.evaluation.overlays import Overlay
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.scoring import UNRELAXED

DIGITS = 3  # of a position, Angstrom


def shown(
    overlays: Sequence[Overlay],
    why: Mapping[int, str],
    records: Mapping[str, Sequence[Record]],
) -> list[dict[str, Any]]:
    """Structures as ``viewer.js`` draws them.

    Args:
        overlays: the structures.
        why: what each is chosen for, by row.
        records: of the places, by their names.
    """
    distances = {title: {r.row: r for r in found} for title, found in records.items()}
    return [_shown(each, why[each.label.row], distances) for each in overlays]


def _shown(
    overlay: Overlay, why: str, distances: Mapping[str, Mapping[int, Record]]
) -> dict[str, Any]:
    row = overlay.label.row
    ends = {title: distances[title][row] for title in overlay.places}
    said = {
        title: f"{r.delta_q:.2f}{' (diverged)' if r.diverged else ''}" for title, r in ends.items()
    }
    places = {
        title: {"title": f"{title} (ΔQ {said[title]})", "positions": _rounded(positions)}
        for title, positions in overlay.places.items()
    }
    models = [title for title in ends if title != UNRELAXED]
    return {
        "row": row,
        "name": overlay.label.sid,
        "about": f"{why}: ΔQ " + ", ".join(f"{title} {said[title]}" for title in models),
        "symbols": [chemical_symbols[number] for number in overlay.numbers],
        "cell": _rounded(overlay.cell),
        "places": places | {"target": {"title": "target", "positions": _rounded(overlay.target)}},
        "first": models[-1] if models else "target",
    }


def _rounded(values: np.ndarray[Any, Any]) -> list[list[float]]:
    rounded: list[list[float]] = np.round(values, DIGITS).tolist()
    return rounded
