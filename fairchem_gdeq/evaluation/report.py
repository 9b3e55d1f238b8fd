"""The final table and the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from fairchem_gdeq.evaluation.metrics import PAPER_DELTA_Q, Basin, Record
from fairchem_gdeq.training.history import History

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def print_table(
    split: str,
    scores: Mapping[str, dict[str, float]],
    history: History,
    basin: Basin,
    console: Console | None = None,
) -> None:
    """One row a model; the training cost below. ``console``: where to, if not to the terminal."""
    count = int(next(iter(scores.values()))["structures"])
    referenced = any("fbt" in row for row in scores.values())
    table = Table(title=f"{split} split, {count} structures", title_justify="left")
    table.add_column("model")
    columns = {
        "Delta Q\nmean": ("delta_q_mean", "{:.3f}"),
        "Delta Q\ntotal": ("delta_q_total", "{:.1f}"),
        f"basins\ndQ<{basin.delta_q:g}": ("basins", "{:.1%}"),
        f"basins\nmax<{basin.displacement:g}A": ("basins_displacement", "{:.1%}"),
        f"basins\ndQ<{PAPER_DELTA_Q:g}": ("basins_paper", "{:.1%}"),
        "MAE\n(A)": ("positions_mae", "{:.4f}"),
        "MSE\n(A^2)": ("positions_mse", "{:.4f}"),
        "ADwT": ("average_distance_within_threshold", "{:.1%}"),
        **({"FbT": ("fbt", "{:.1%}"), "AFbT": ("afbt", "{:.1%}")} if referenced else {}),
        "conv.": ("converged", "{:.0%}"),
        "div.": ("diverged", "{:.0%}"),
        "force\nevals": ("evaluations", "{:.1f}"),
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, row in scores.items():
        cells = [form.format(row[key]) if key in row else "-" for key, form in columns.values()]
        if row["evaluations"] == 0:  # nothing was relaxed: convergence does not apply
            cells[-3:-1] = ["-", "-"]
        table.add_row(name, *cells)
    console = console or Console(width=max(120, Console().width))
    console.print(table)
    console.print(
        "Delta Q in amu^0.5 Angstrom. MAE, MSE, ADwT as fairchem's IS2RS metrics: free atoms, rigid "
        "shifts kept. Rows of ASE: its optimizers on the base.",
        highlight=False,
    )
    if taken := [
        f"{name} {r['shift_removed']:.3f}" for name, r in scores.items() if r["shift_removed"]
    ]:
        console.print(
            "Delta Q is measured after removing each structure's rigid shift, in the mean (Angstrom): "
            + ", ".join(taken),
            highlight=False,
        )
    if steps := history.steps:
        seconds = np.array([s["train/seconds"] for s in steps])
        memory = np.array([s["train/peak_memory_mb"] for s in steps])
        console.print(
            f"training: {len(seconds)} steps, median {np.median(seconds):.1f} s and "
            f"{np.median(memory):.0f} MB (peak {memory.max():.0f} MB) per step; "
            f"reported epoch: {int(history.best['epoch']) if history.best else '-'} "
            "(lowest validation Delta Q)",
            highlight=False,
        )


def plot_all(
    folder: Path,
    split: str,
    scores: Mapping[str, dict[str, float]],
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
        values = np.array([s[f"train/delta_q_{key}"] for s in steps])
        if len(values) and np.isfinite(values).any():
            bins = np.floor(where)
            means = [np.nanmean(values[bins == b]) for b in np.unique(bins)]
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


def plot_basins(path: Path, scores: Mapping[str, dict[str, float]]) -> Path:
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


def _save(fig: plt.Figure, path: Path) -> Path:
    fig.savefig(path, dpi=130)
    plt.close(fig)
    return path
