"""Pictures of how well structures relax, and of how a run went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
    """Delta Q against epoch: validation, and the training batches' mean."""
    fig, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = [e["epoch"] for e in history.epochs]
    axes.plot(epochs, [e["delta_q_mean"] for e in history.epochs], "o-", label="validation")
    steps = history.steps
    where = np.array([s["train/epoch"] for s in steps])
    for key, label in (("relaxed", "training, X*"), ("guided", "training, X_K")):
        values = np.array([s.get(f"train/delta_q_{key}", np.nan) for s in steps])
        if len(values) and np.isfinite(values).any():
            known = np.isfinite(values)
            bins = np.floor(where[known])
            means = [values[known][bins == b].mean() for b in np.unique(bins)]
            axes.plot(np.unique(bins) + 0.5, means, "--", label=label)
    if history.base:
        axes.axhline(history.base["delta_q_mean"], color="0.4", ls=":", label="base, validation")
    if history.best:
        axes.axvline(history.best["epoch"], color="0.7", lw=1, zorder=0, label="reported epoch")
    axes.set(xlabel="epoch", ylabel=r"mean $\Delta Q$ (amu$^{1/2}$ Å)", ylim=(0, None))
    axes.legend()
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
