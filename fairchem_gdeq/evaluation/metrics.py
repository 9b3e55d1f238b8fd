"""The metrics of relaxed structures: Delta Q, basins, the leaderboard's, and how relaxing went.

Each is one entry, and its order here is that of the results file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairchem_gdeq.evaluation.basin import PAPER_DELTA_Q, Basin
from fairchem_gdeq.evaluation.failures import CAUSES
from fairchem_gdeq.evaluation.leaderboard import (
    ADWT_THRESHOLDS,
    AFBT_THRESHOLDS,
    FBT_THRESHOLD,
    share_below,
)
from fairchem_gdeq.evaluation.metric import (
    METRICS,
    Column,
    Columns,
    Metric,
    Scores,
    measured_metrics,
    register_metric,
)
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.relax.causes import Cause

# Configs say fairchem_gdeq.evaluation.metrics.Basin.
__all__ = ["METRICS", "Basin", "Column", "Metric", "register_metric", "summarise"]

ENERGY_WITHIN = 0.1  # eV above the target's: AdsorbML's success
Summary = Callable[[Columns, Basin], float | None]


def summarise(records: list[Record], basin: Basin) -> Scores:
    """The row of a results table: every metric that can be given, by its name.

    Fractions are of all structures, diverged ones included. ``structures``, their number, is first.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no structures to summarise")
    own = [f.name for f in fields(Record) if f.name != "others"]
    columns = {name: np.array([getattr(r, name) for r in records]) for name in own}
    for name in measured_metrics():
        # Records from before a metric was registered do not have it.
        columns[name] = np.array([r.others.get(name, np.nan) for r in records])
    values = {name: metric.summarise(columns, basin) for name, metric in METRICS.items()}
    known = {name: value for name, value in values.items() if value is not None}
    return {"structures": len(records), **known}


def mean_of(key: str) -> Summary:
    """The mean over structures of a measure."""
    return lambda columns, basin: float(columns[key].mean())


def share_of(cause: Cause) -> Summary:
    """The share of structures whose relaxation ended for that cause."""
    return lambda columns, basin: float((columns["cause"] == cause.key).mean())


def captured(columns: Columns, key: str, below: float) -> float:
    """Share of structures with a measure below a limit; one that diverged is nowhere."""
    return float(((columns[key] < below) & ~columns["diverged"].astype(bool)).mean())


def pooled(key: str) -> Summary:
    """The mean over all free atoms of the split, of a measure that is a mean over each structure's."""

    def over_atoms(columns: Columns, basin: Basin) -> float:
        atoms = columns["free_atoms"]
        return float((atoms * columns[key]).sum() / max(atoms.sum(), 1))

    return over_atoms


def within(key: str) -> Summary:
    """Share of pairs of a structure and an ADwT threshold with the structure's measure below.

    One that diverged is nowhere, however near its start is.
    """

    def share(columns: Columns, basin: Basin) -> float:
        lost = columns["diverged"].astype(bool)
        return share_below(np.where(lost, np.inf, columns[key]), ADWT_THRESHOLDS)

    return share


def forces_below(thresholds: ArrayLike) -> Summary:
    """The same for reference forces; None if a structure has none."""

    def share(columns: Columns, basin: Basin) -> float | None:
        forces = columns["reference_force"]
        if any(force is None for force in forces):
            return None
        lost = columns["diverged"].astype(bool)
        return share_below(np.where(lost, np.inf, forces.astype(float)), thresholds)

    return share


def known_energies(columns: Columns) -> NDArray[np.float64] | None:
    """Reference energies above the targets [s], eV; None if a structure has none."""
    energies = columns["reference_energy"]
    return None if any(energy is None for energy in energies) else energies.astype(float)


def mean_energy(columns: Columns, basin: Basin) -> float | None:
    """Their mean, over the structures where the reference did not fail."""
    known = known_energies(columns)
    if known is None or not np.isfinite(known).any():
        return None
    return float(known[np.isfinite(known)].mean())


def within_energy(columns: Columns, basin: Basin) -> float | None:
    """Share of structures at most ``ENERGY_WITHIN`` above their target; failures are above, and so is
    one that diverged.
    """
    known = known_energies(columns)
    ended = ~columns["diverged"].astype(bool)
    return None if known is None else float(((known <= ENERGY_WITHIN) & ended).mean())


def was_relaxed(scores: Scores) -> bool:
    """Where no force was evaluated, convergence does not apply."""
    return scores["evaluations"] != 0


BUILT_IN = (
    Metric("delta_q_mean", "amu^0.5 A", mean_of("delta_q"), Column("Delta Q\nmean", "{:.3f}")),
    Metric(
        "delta_q_total",
        "amu^0.5 A",
        lambda columns, basin: float(columns["delta_q"].sum()),
        Column("Delta Q\ntotal", "{:.1f}"),
    ),
    Metric(
        "delta_q_median",
        "amu^0.5 A",
        lambda columns, basin: float(np.median(columns["delta_q"])),
    ),
    Metric(
        "basins",
        "",
        lambda columns, basin: captured(columns, "delta_q", basin.delta_q),
        Column(lambda basin: f"basins\ndQ<{basin.delta_q:g}", "{:.1%}"),
    ),
    Metric(
        "basins_displacement",
        "",
        lambda columns, basin: captured(columns, "max_displacement", basin.displacement),
        Column(lambda basin: f"basins\nmax<{basin.displacement:g}A", "{:.1%}"),
    ),
    Metric(
        "basins_paper",
        "",
        lambda columns, basin: captured(columns, "delta_q", PAPER_DELTA_Q),
        Column(f"basins\ndQ<{PAPER_DELTA_Q:g}", "{:.1%}"),
    ),
    Metric("shift_removed", "A", mean_of("shift_removed")),
    # These two are after drift removal.
    Metric("mae", "A", mean_of("mae")),
    Metric("adwt", "", within("mean_distance")),
    # These carry fairchem's names and are its numbers; the errors are of all free coordinates.
    Metric("positions_mae", "A", pooled("leaderboard_mae"), Column("MAE\n(A)", "{:.4f}")),
    Metric("positions_mse", "A^2", pooled("leaderboard_mse"), Column("MSE\n(A^2)", "{:.4f}")),
    Metric(
        "average_distance_within_threshold",
        "",
        within("leaderboard_distance"),
        Column("ADwT", "{:.1%}"),
    ),
    Metric(
        "converged",
        "",
        mean_of("converged"),
        Column("conv.", "{:.0%}", was_relaxed),
        about="relaxation",
    ),
    Metric(
        "diverged",
        "",
        mean_of("diverged"),
        Column("div.", "{:.0%}", was_relaxed),
        about="relaxation",
    ),
    Metric(
        "evaluations",
        "",
        mean_of("evaluations"),
        Column("force\nevals", "{:.1f}"),
        about="relaxation",
    ),
    *(Metric(cause.key, "", share_of(cause), about="relaxation") for cause in CAUSES),
    # Only where every structure has a reference force.
    Metric("fbt", "", forces_below(FBT_THRESHOLD), Column("FbT", "{:.1%}")),
    Metric("afbt", "", forces_below(AFBT_THRESHOLDS), Column("AFbT", "{:.1%}")),
    # Only where a calculator is asked; AdsorbML counts a success in the same way.
    Metric("reference_energy", "eV", mean_energy, Column("E above\ntarget (eV)", "{:+.3f}")),
    Metric(
        "reference_within",
        "",
        within_energy,
        Column(f"within\n{ENERGY_WITHIN:g} eV", "{:.1%}"),
    ),
    # Of labelled frames, not of relaxed structures: who scores a model adds it to the row.
    Metric(
        "force_mae",
        "eV/A",
        lambda columns, basin: None,
        Column("force MAE\n(eV/A)", "{:.4f}"),
        about="relaxation",
    ),
)

for metric in BUILT_IN:
    register_metric(metric)
