"""The figure of a diagnosis: distances, forces, lengths and curvatures of the structures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fairchem_gdeq.diagnose.conditions import KINDS
from fairchem_gdeq.diagnose.examine import Finding
from fairchem_gdeq.page.scatter import DELTA_Q

BINS = 20
COLOURS = dict(zip(KINDS, ("#1b9e77", "#66a6d8", "#d95f02", "#999999"), strict=True))


def findings_figure(findings: Sequence[Finding]) -> go.Figure:
    """Four panels; the colour is that of the end, and a point has its name where the mouse is."""
    figure = make_subplots(2, 2, vertical_spacing=0.16, horizontal_spacing=0.1)
    far = _edges([f.end_delta_q for f in findings])
    known = [f for f in findings if math.isfinite(f.stiffest)]
    stiff = _edges([f.stiffest for f in known])
    for kind, colour in COLOURS.items():
        these = [f for f in findings if f.end == kind]
        look = {"marker": {"color": colour}, "legendgroup": kind, "name": kind}
        dots = look | {
            "mode": "markers",
            "showlegend": False,
            "hovertemplate": "<b>%{text}</b><br>%{x:.4g}, %{y:.4g}",
        }
        figure.add_bar(**_bars([f.end_delta_q for f in these], far), **look, row=1, col=1)
        figure.add_scatter(
            x=[f.target_force_max for f in these],
            y=[f.target_moved for f in these],
            text=[html.escape(f.sid, quote=False) for f in these],
            **dots,
            row=1,
            col=2,
        )
        ways = [f for f in these if f.length and f.decided is not None]
        figure.add_scatter(
            x=[f.length for f in ways],
            y=[f.decided for f in ways],
            text=[html.escape(f.sid, quote=False) for f in ways],
            **dots,
            row=2,
            col=1,
        )
        curved = [f.stiffest for f in known if f.end == kind]
        figure.add_bar(**_bars(curved, stiff), **look, showlegend=False, row=2, col=2)
    for row, col, x, y in (
        (1, 1, f"ends at {DELTA_Q}", "structures"),
        (1, 2, "largest force at the target (eV/Å)", f"target moves by {DELTA_Q}"),
        (2, 1, "plain steps to the end", "basin decided after"),
        (2, 2, "stiffest curvature (eV/Å²)", "structures"),
    ):
        figure.update_xaxes(title=x, row=row, col=col)
        figure.update_yaxes(title=y, rangemode="nonnegative", row=row, col=col)
    figure.update_layout(
        template="plotly_white",
        height=640,
        margin={"t": 40, "r": 10},
        barmode="stack",
        bargap=0.05,
        legend={"orientation": "h", "y": 1.08},
    )
    return figure


def _edges(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Edges [BINS + 1] of a histogram of all values."""
    edges: np.ndarray[tuple[int], np.dtype[np.float64]] = np.histogram_bin_edges(values, BINS)
    return edges


def _bars(
    values: Sequence[float], edges: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> dict[str, list[float]]:
    """Middles and heights of the bars."""
    counts, _ = np.histogram(values, edges)
    return {"x": (0.5 * (edges[1:] + edges[:-1])).tolist(), "y": counts.tolist()}
