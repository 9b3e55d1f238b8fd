"""Pictures of how well structures relax, and of how a run went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fairchem_gdeq.evaluation.curves import draw_delta_q, draw_forces, has_forces
from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.training.history import History

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_all(
    folder: Path,
    split: str,
    scores: Mapping[str, Scores],
    records: Mapping[str, list[Record]],
    history: History,
) -> list[Path]:
    """Write the pictures that the data allow; returns their paths."""
    pictures = [plot_basins(folder / f"{split}_basins.png", scores)]
    if {"base", "tuned"} <= records.keys():
        pictures.append(plot_structures(folder / f"{split}_structures.png", records))
    if history.epochs:
        pictures.append(plot_epochs(folder / "epochs.png", history))
    return pictures


def plot_epochs(path: Path, history: History) -> Path:
    """Delta Q over the run, and below it the loss of the forces where there is one."""
    forces = has_forces(history)
    fig, panels = plt.subplots(
        1 + forces,
        figsize=(6, 6.5 if forces else 4),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    upper, *lower = panels[:, 0]
    draw_delta_q(upper, history)
    for axes in lower:
        draw_forces(axes, history)
    panels[-1, 0].set(xlabel="epoch")
    return _save(fig, path)


def plot_structures(path: Path, records: Mapping[str, list[Record]]) -> Path:
    """Every structure's Delta Q, base against tuned."""
    base = np.array([r.delta_q for r in records["base"]])
    tuned = np.array([r.delta_q for r in records["tuned"]])
    fig, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.scatter(base, tuned, s=14)
    top = 1.05 * max(base.max(), tuned.max())
    axes.plot([0, top], [0, top], color="0.7", lw=1, zorder=0)
    axes.set(xlabel=r"base $\Delta Q$ (amu$^{1/2}$ Å)", ylabel=r"tuned $\Delta Q$ (amu$^{1/2}$ Å)")
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axes.set_title(f"below the line: better ({(tuned < base).sum()} of {len(base)})")
    return _save(fig, path)


def plot_basins(path: Path, scores: Mapping[str, Scores]) -> Path:
    """Captured basins of each model, under each criterion."""
    kinds = {"basins": r"$\Delta Q$", "basins_displacement": "max displacement"}
    fig, axes = plt.subplots(figsize=(max(6, 1.6 * len(scores)), 4), layout="constrained")
    where = np.arange(len(scores))
    for i, (key, label) in enumerate(kinds.items()):
        values = [100 * row[key] for row in scores.values()]
        bars = axes.bar(where + (i - 0.5) * 0.4, values, 0.38, label=label)
        axes.bar_label(bars, fmt="%.0f")
    axes.set_xticks(where, list(scores))
    axes.set(ylabel="basins captured (%)", ylim=(0, 105))
    axes.legend(title="criterion")
    return _save(fig, path)


def _save(fig: Figure, path: Path) -> Path:
    fig.savefig(path, dpi=130)
    plt.close(fig)
    return path
