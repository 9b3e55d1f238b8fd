"""The figure of a run: losses, distances, convergence and cost, step by step and epoch by epoch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from fairchem_gdeq.evaluation.curves import running_mean
from fairchem_gdeq.training.history import History

MOST = 1500  # points of a curve; of more steps, neighbours are averaged
COLOURS = ("#7570b3", "#66a6d8")
VALIDATED = "#d95f02"


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        title: with the unit.
        steps: names of curves, by the key in the log of a step.
        scores: key in the scores of a validation; None if it has none.
    """

    title: str
    steps: dict[str, str]
    scores: str | None = None


PANELS = (
    Panel(
        "mean ΔQ (amu<sup>½</sup> Å)",
        {"train/delta_q_relaxed": "training, X*", "train/delta_q_guided": "training, X_K"},
        "delta_q_mean",
    ),
    Panel("share of right basins", {}, "basins"),
    Panel("loss of the signal", {"train/loss": "training"}),
    Panel("loss of the forces", {"train/forces_loss": "training"}),
    Panel("share converged", {"train/converged": "training"}, "converged"),
    Panel("force evaluations a structure", {"train/evaluations": "training"}, "evaluations"),
)


def history_figure(history: History) -> tuple[go.Figure, bool] | None:
    """Panels of all that a run has logged, over its epochs; the base is epoch 0.

    Returns:
        The figure, and whether neighbouring steps are averaged in it; None where nothing was logged.
    """
    steps = history.steps
    drawings: dict[str, list[go.Scatter]] = {}
    averaged = False
    for panel in PANELS:
        traces = []
        for (key, name), colour in zip(panel.steps.items(), COLOURS, strict=False):
            known = [s for s in steps if np.isfinite(s.get(key, np.nan))]
            averaged |= len(known) > MOST
            traces += _curve(known, key, name, colour)
        if panel.scores is not None:
            traces += _validated(history, panel.scores)
        if traces:
            drawings[panel.title] = traces
    if against := _against_base(history):
        drawings["validation: change of log(1 + ΔQ) against the base"] = [against]
    if not drawings:
        return None
    end = max(max(trace.x) for traces in drawings.values() for trace in traces) or 1.0
    rows = -(-len(drawings) // 2)
    figure = make_subplots(
        rows,
        2,
        subplot_titles=list(drawings),
        vertical_spacing=0.36 / rows,
        horizontal_spacing=0.08,
    )
    for place, traces in enumerate(drawings.values()):
        where = {"row": 1 + place // 2, "col": 1 + place % 2}
        for trace in traces:
            figure.add_trace(trace, **where)
        figure.update_xaxes(title="epoch", range=[-0.03 * end, 1.03 * end], **where)
        if place < len(drawings) - (against is not None):
            figure.update_yaxes(rangemode="tozero", **where)
    said: set[str] = set()
    for trace in figure.data:  # one entry of the legend for each name
        trace.legendgroup = trace.name
        if trace.showlegend is not False:
            trace.showlegend = trace.name not in said
            said.add(trace.name)
    figure.update_layout(
        template="plotly_white",
        height=60 + 270 * rows,
        margin={"t": 60, "r": 10},
        legend={"orientation": "h", "y": 1 + 0.25 / rows, "x": 0},
    )
    return figure, averaged


def _curve(steps: list[dict[str, float]], key: str, name: str, colour: str) -> list[go.Scatter]:
    """Every step as a point, and their running mean."""
    if not steps:
        return []
    where, number, values = (
        _blocks(np.array([s[k] for s in steps], dtype=float))
        for k in ("train/epoch", "train/step", key)
    )
    points = go.Scatter(
        x=where,
        y=values,
        mode="markers",
        marker={"color": colour, "size": 5, "opacity": 0.45},
        customdata=number[:, None].tolist(),
        hovertemplate="step %{customdata[0]:.0f}: %{y:.4g}<extra></extra>",
        name=name,
        showlegend=False,
    )
    line = go.Scatter(
        x=where,
        y=running_mean(values),
        mode="lines",
        line={"color": colour, "width": 2},
        hoverinfo="skip",
        name=name,
    )
    return [points, line]


def _blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most ``MOST`` values: the means of neighbours where there are more."""
    if len(values) <= MOST:
        return values
    return np.array([part.mean() for part in np.array_split(values, MOST)])


def _validated(history: History, key: str) -> list[go.Scatter]:
    """A score of each validated epoch, the base's as that of epoch 0."""
    points = [(e["epoch"], e[key]) for e in history.epochs if key in e]
    if history.base and key in history.base:
        points.append((0.0, history.base[key]))
    if not points:
        return []
    where, values = np.array(sorted(points)).T
    return [
        go.Scatter(
            x=where,
            y=values,
            mode="lines+markers",
            line={"color": VALIDATED, "width": 2},
            marker={"size": 8},
            hovertemplate="epoch %{x:g}: %{y:.4g}<extra></extra>",
            name="validation (epoch 0: the base)",
        )
    ]


def _against_base(history: History) -> go.Scatter | None:
    """What decides which epoch is kept, with its interval."""
    found = [(e["epoch"], e["against_base"]) for e in history.epochs if "against_base" in e]
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])
    middle, low, high = (
        np.array([against[key] for _, against in found])
        for key in ("log_change", "log_low", "log_high")
    )
    # Of a single structure the interval has no end, and no bar.
    up, down = (np.where(np.isfinite(x), x, 0.0) for x in (high - middle, middle - low))
    return go.Scatter(
        x=[epoch for epoch, _ in found],
        y=middle,
        error_y={"type": "data", "array": up, "arrayminus": down},
        mode="markers",
        marker={"size": 9, "color": VALIDATED},
        text=[f"{a['verdict']}: {a['log_low']:+.3f} to {a['log_high']:+.3f}" for _, a in found],
        hovertemplate="epoch %{x:g}: %{y:+.3f}<br>%{text}<extra></extra>",
        name="against the base, with the interval",
        showlegend=False,
    )
