"""Figures of one split: every structure with two models, and the scores of all models side by side."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import pairs_of
from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.records import Record

MOST = 4000  # points of a scatter: more are slow to draw without WebGL
DELTA_Q = "ΔQ (amu<sup>½</sup> Å)"
KINDS = {  # of a structure's change, with colours that are told apart without red and green
    "lost": "#d95f02",
    "gained": "#1b9e77",
    "right in both": "#7570b3",
    "wrong in both": "#999999",
}


def pairs_figure(
    records: Mapping[str, Sequence[Record]],
    titles: tuple[str, str],
    basin: Basin,
    ringed: Collection[int] = (),
) -> tuple[go.Figure, int]:
    """Delta Q of each structure with one model and with another, its name where the mouse is.

    Args:
        records: of rows of the table, by title.
        titles: of the two rows; the first is the horizontal axis.
        basin: when a structure is in the right one.
        ringed: rows of structures to mark.

    Returns:
        The figure, and how many structures are left out of it. Where there are more than ``MOST``,
        half of the points are those that changed most, and half stand for the others.
    """
    before, after = (records[title] for title in titles)
    found = pairs_of(before, after, basin)
    names = {r.row: html.escape(r.sid, quote=False) for r in before}  # plotly reads tags in texts
    shown = np.zeros(len(found.rows), dtype=bool)
    shown[_some(np.abs(np.log1p(found.after) - np.log1p(found.before)))] = True
    kinds = zip(
        KINDS.items(),
        (
            found.lost,
            found.gained,
            found.was_right & found.is_right,
            ~found.was_right & ~found.is_right,
        ),
        strict=True,
    )
    figure = go.Figure()
    ends = [0.5 * max(min(found.before.min(), found.after.min()), 0.01)]
    ends.append(1.1 * max(found.before.max(), found.after.max(), basin.delta_q))
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": "#bbb"}, hoverinfo="skip", name="equal"
    )
    ring = np.isin(found.rows, list(ringed)) & shown
    figure.add_scatter(
        x=found.before[ring],
        y=found.after[ring],
        mode="markers",
        marker={"symbol": "circle-open", "size": 15, "color": "#222", "line": {"width": 1.5}},
        hoverinfo="skip",
        name="shown in 3D",
        visible=True if ring.any() else "legendonly",
        showlegend=bool(ring.any()),
    )
    for (kind, colour), those in kinds:
        rows = found.rows[those & shown]
        figure.add_scatter(
            x=found.before[those & shown],
            y=found.after[those & shown],
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.8},
            cliponaxis=False,
            text=[names[row] for row in rows],
            customdata=rows[:, None].tolist(),
            hovertemplate=(
                "<b>%{text}</b><br>row %{customdata[0]}"
                f"<br>{titles[0]} %{{x:.3f}}<br>{titles[1]} %{{y:.3f}}<extra>{kind}</extra>"
            ),
            name=f"{kind} ({int(those.sum())})",
        )
    dotted = {"dash": "dot", "color": "#999", "width": 1}
    figure.add_vline(x=basin.delta_q, line=dotted)
    figure.add_hline(y=basin.delta_q, line=dotted)
    scales = [
        {
            "label": scale,
            "method": "relayout",
            "args": [
                {
                    "xaxis.type": scale,
                    "yaxis.type": scale,
                    "xaxis.autorange": True,
                    "yaxis.autorange": True,
                }
            ],
        }
        for scale in ("linear", "log")
    ]
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"t": 40, "r": 10},
        xaxis={"title": f"{titles[0]}: {DELTA_Q}", "rangemode": "tozero"},
        yaxis={"title": f"{titles[1]}: {DELTA_Q}", "rangemode": "tozero"},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": scales,
                "x": 0,
                "y": 1.08,
                "xanchor": "left",
            }
        ],
    )
    return figure, int((~shown).sum())


def _some(change: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of at most ``MOST`` values: the largest, and of the others evenly spaced ones in order."""
    order = np.argsort(-change, kind="stable")
    if len(order) <= MOST:
        return order
    half = MOST // 2
    return np.concatenate([order[:half], order[half :: -(-(len(order) - half) // half)]])


def scores_figure(scores: Mapping[str, Scores]) -> go.Figure:
    """Bars of each model: Delta Q, right basins, and the force error where there is one."""
    panels = {
        DELTA_Q: {"delta_q_mean": "mean", "delta_q_median": "median"},
        "right basins (%)": {
            "basins": "by ΔQ",
            "basins_displacement": "by the largest displacement",
        },
        "force MAE (eV/Å)": {"force_mae": "force MAE"},
    }
    if not any("force_mae" in row for row in scores.values()):
        del panels["force MAE (eV/Å)"]
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), horizontal_spacing=0.08)
    colours = iter(("#7570b3", "#b8b5d8", "#1b9e77", "#a3d6c6", "#d95f02"))
    for column, (title, keys) in enumerate(panels.items(), start=1):
        factor = 100 if "%" in title else 1
        for key, name in keys.items():
            values = {t: factor * row[key] for t, row in scores.items() if key in row}
            figure.add_bar(
                x=list(values),
                y=list(values.values()),
                name=name,
                marker={"color": next(colours)},
                text=[f"{v:.3g}" for v in values.values()],
                textangle=0,
                cliponaxis=False,
                row=1,
                col=column,
            )
    figure.update_layout(
        template="plotly_white", height=340, margin={"t": 50, "r": 10}, barmode="group"
    )
    return figure
