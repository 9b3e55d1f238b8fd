"""The picture of a run: both losses, step by step and epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fairchem_gdeq.training.history import History

FEW_EPOCHS = 5  # up to so many, the steps of an epoch are shown and not their mean
SMOOTH = 20  # windows of the running mean in a run


def draw_delta_q(axes: Axes, history: History) -> None:
    """Delta Q over the run: validation, the base as epoch 0, and the training batches'."""
    points = [(e["epoch"], e["delta_q_mean"]) for e in history.epochs]
    if history.base:
        level = history.base["delta_q_mean"]
        points = [(0, level), *points]
        axes.axhline(level, color="0.4", ls=":", label="base, validation")
    axes.plot(*np.array(sorted(points)).T, "o-", label="validation", zorder=3)
    for key, label in (("relaxed", "training, X*"), ("guided", "training, X_K")):
        _draw_steps(axes, history, f"train/delta_q_{key}", label)
    if history.best:
        axes.axvline(history.best["epoch"], color="0.7", lw=1, zorder=0, label="reported epoch")
    axes.set(ylabel=r"mean $\Delta Q$ (amu$^{1/2}$ Å)", ylim=(0, None))
    axes.legend(fontsize="small")


def draw_forces(axes: Axes, history: History) -> None:
    """The loss of the forces over the run."""
    _draw_steps(axes, history, "train/forces_loss", "forces, training")
    axes.set(ylabel="loss of forces", ylim=(0, None))
    axes.legend(fontsize="small")


def has_forces(history: History) -> bool:
    """Whether forces were trained on beside the signal."""
    return any("train/forces_loss" in step for step in history.steps)


def _draw_steps(axes: Axes, history: History, key: str, label: str) -> None:
    """A number of each step: its running mean, or in long runs its mean over each epoch."""
    known = [
        (s["train/epoch"], s[key]) for s in history.steps if np.isfinite(s.get(key, float("nan")))
    ]
    if not known:
        return
    where, values = np.array(known, dtype=float).T
    if where.max() >= FEW_EPOCHS:
        epochs = np.floor(where)
        means = [values[epochs == each].mean() for each in np.unique(epochs)]
        axes.plot(np.unique(epochs) + 0.5, means, "--", label=label)
        return
    (line,) = axes.plot(where, running_mean(values), "-", lw=1.5, label=label)
    axes.plot(where, values, ".", ms=5, alpha=0.4, color=line.get_color())


def running_mean(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Means [n] of the values around each of [n] values; fewer of them at both ends."""
    given = np.asarray(values, dtype=float)
    reach = len(given) // (2 * SMOOTH)
    total = np.concatenate([[0.0], np.cumsum(given)])
    place = np.arange(len(given))
    first = np.maximum(place - reach, 0)
    last = np.minimum(place + reach + 1, len(given))
    means: NDArray[np.float64] = (total[last] - total[first]) / (last - first)
    return means
