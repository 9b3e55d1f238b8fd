"""The page of a scored split, and of the run that made the tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import NOTICEABLE, Comparison, pairs_of
from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.overlays import Overlay
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.scoring import BASE, TUNED, UNRELAXED
from fairchem_gdeq.evaluation.table import conclusions, explanations, results_table
from fairchem_gdeq.page.curves import history_figure
from fairchem_gdeq.page.scatter import pairs_figure, scores_figure
from fairchem_gdeq.page.structures import shown
from fairchem_gdeq.page.write import HERE, write_page
from fairchem_gdeq.training.history import History

NAMED = 20  # structures that are named in a row; the others are counted


@dataclass(frozen=True)
class Outcome:
    """What a page shows; the first ones are those of ``evaluation.report.report``.

    Attributes:
        comparison: of the tuned model with its base; None where there is none.
        overlays: the structures to look at.
        why: what each of them was chosen for, by its row.
    """

    split: str
    signal: str
    basin: Basin
    scores: Mapping[str, Scores]
    records: Mapping[str, Sequence[Record]]
    history: History
    comparison: Comparison | None
    overlays: Sequence[Overlay]
    why: Mapping[int, str]


def write_report(folder: Path, name: str, o: Outcome) -> Path:
    """Write ``folder/name``; returns its path."""
    table = results_table(o.split, o.scores, o.basin)
    models = [title for title in (UNRELAXED, BASE, TUNED) if title in o.records]
    pair = (models[-2], models[-1]) if len(models) > 1 else None
    rows = {overlay.label.row for overlay in o.overlays}
    return write_page(
        folder,
        HERE,
        "report.html",
        name,
        title=table.title + (f": tuned by signal {o.signal}" if TUNED in o.records else ""),
        verdict=conclusions(o.history, o.comparison) or [_in_words(o)],
        table=table,
        notes=explanations(o.scores, o.history),
        changes=_changes(o),
        pairs=pair and pairs_figure(o.records, pair, o.basin, rows),
        pair=pair,
        basin=o.basin,
        bars=scores_figure(o.scores),
        has_forces=any("force_mae" in row for row in o.scores.values()),
        curves=history_figure(o.history),
        structures=shown(o.overlays, o.why, o.records),
        split=o.split,
    )


def _in_words(o: Outcome) -> str:
    """A sentence where there is no other: how the last row of the table does."""
    title = list(o.scores)[-1]
    row = o.scores[title]
    return (
        f"{title}: the mean Delta Q is {row['delta_q_mean']:.2f}, and {row['basins']:.0%} of the "
        "structures are in the right basin. There is no tuned model to compare with."
    )


def _changes(o: Outcome) -> list[list[str]]:
    """Numbers of structures that are nearer, farther, gained and lost, with those that changed most."""
    if o.comparison is None:
        return []
    found = pairs_of(o.records[BASE], o.records[TUNED], o.basin)
    names = {r.row: r.sid for r in o.records[BASE]}
    change = found.after - found.before
    order = np.argsort(-np.abs(np.log1p(found.after) - np.log1p(found.before)), kind="stable")
    kinds = {
        f"nearer by more than {NOTICEABLE}": change < -NOTICEABLE,
        f"farther by more than {NOTICEABLE}": change > NOTICEABLE,
        "right basin gained": found.gained,
        "right basin lost": found.lost,
    }
    return [
        [
            kind,
            str(int(those.sum())),
            _listed([names[row] for row in found.rows[order][those[order]]]),
        ]
        for kind, those in kinds.items()
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
