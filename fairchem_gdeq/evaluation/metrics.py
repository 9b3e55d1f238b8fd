"""How good a relaxed structure is: Delta Q, basin capture, and the leaderboard's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fairchem_gdeq.evaluation.leaderboard import (
    ADWT_THRESHOLDS,
    AFBT_THRESHOLDS,
    FBT_THRESHOLD,
    position_errors,
    share_below,
)
from fairchem_gdeq.relax.loss import free_displacement, rigid_shift
from fairchem_gdeq.relax.segments import segment_max_norm, segment_sum, to_host
from fairchem_gdeq.relax.structures import Structures

PAPER_DELTA_Q = 3.0  # amu^0.5 Angstrom: the papers' 300 summed over about 100 structures


@dataclass(frozen=True)
class Basin:
    """When a relaxed structure counts as having captured the right basin.

    Both criteria are reported, each by itself. The defaults are such that hardly any unrelaxed
    start of the silicon set counts as captured.

    Attributes:
        delta_q: Delta Q below this, amu^0.5 Angstrom.
        displacement: largest free-atom distance from the target below this, Angstrom.
    """

    delta_q: float = 2.0
    displacement: float = 0.3


class Label(NamedTuple):
    """Which structure of a data set one is: its name, and its row, which no other has."""

    sid: str
    row: int


@dataclass(frozen=True)
class Record:
    """One relaxed structure against its target.

    The first measures are after drift removal where pinned; those named ``leaderboard_`` are
    fairchem's, see ``leaderboard.PositionErrors``.

    Attributes:
        sid: its name in the data set, which others may have too.
        row: its place there, which is its own.
        delta_q: eq. 2, amu^0.5 Angstrom.
        max_displacement: of a free atom from its target, Angstrom.
        mean_distance: of free atoms from their targets, Angstrom.
        mae: mean absolute error of a free coordinate, Angstrom.
        converged, diverged: how the relaxation ended.
        evaluations: force evaluations.
        residual: largest force on a free atom at the end, eV/Angstrom.
        free_atoms: number of free atoms.
        shift_removed: rigid shift that was taken out before measuring, Angstrom; 0 where none is.
        leaderboard_distance: mean distance of free atoms from their targets, Angstrom.
        leaderboard_mae, leaderboard_mse: of free coordinates, Angstrom and Angstrom^2.
        reference_force: largest reference force on a free atom there, eV/Angstrom; infinite where
            it could not be calculated, None where there is no reference.
    """

    sid: str
    row: int
    delta_q: float
    max_displacement: float
    mean_distance: float
    mae: float
    converged: bool
    diverged: bool
    evaluations: int
    residual: float
    free_atoms: int
    shift_removed: float
    leaderboard_distance: float
    leaderboard_mae: float
    leaderboard_mse: float
    reference_force: float | None = None


def measure(
    labels: Sequence[Label],
    positions: Tensor,
    target: Tensor,
    structures: Structures,
    pin: Tensor,
    converged: Tensor,
    diverged: Tensor,
    evaluations: Tensor,
    residual: Tensor,
) -> list[Record]:
    """Records of a batch: positions and target [n, 3] in Angstrom, ``labels`` and the rest [s]."""
    s = structures
    ends, exact = (positions.double(), target.double()), _double(s)
    move = free_displacement(*ends, exact, pin)
    number = segment_sum(s.free.double(), s.batch, s.count).clamp_min(1.0)
    squared = (s.masses.double()[:, None] * move * move).sum(-1)
    errors = position_errors(positions, target, s)
    columns = {
        "delta_q": segment_sum(squared, s.batch, s.count).sqrt(),
        "max_displacement": segment_max_norm(move, s.batch, s.count),
        "mean_distance": segment_sum(move.norm(dim=-1), s.batch, s.count) / number,
        "mae": segment_sum(move.abs().mean(-1), s.batch, s.count) / number,
        "shift_removed": rigid_shift(*ends, exact, pin),
        "leaderboard_distance": errors.distance,
        "leaderboard_mae": errors.absolute,
        "leaderboard_mse": errors.squared,
    }
    measured = zip(columns, to_host(*columns.values()).tolist(), strict=True)
    lists = dict(measured) | {
        "converged": converged.tolist(),
        "diverged": diverged.tolist(),
        "evaluations": evaluations.tolist(),
        "residual": residual.tolist(),
        "free_atoms": errors.atoms.tolist(),
    }
    return [
        Record(sid=label.sid, row=label.row, **dict(zip(lists, structure, strict=True)))
        for label, structure in zip(labels, zip(*lists.values(), strict=True), strict=True)
    ]


def _double(s: Structures) -> Structures:
    return replace(s, masses=s.masses.double(), cell=s.cell.double())


def summarise(records: list[Record], basin: Basin) -> dict[str, float]:
    """The row of a results table; fractions are of all structures, diverged ones included.

    ``mae`` and ``adwt`` are after drift removal; ``positions_mae``, ``positions_mse`` (of all free
    coordinates of the split) and ``average_distance_within_threshold`` carry fairchem's names and
    are its numbers. ``fbt`` and ``afbt`` are there if every record has a reference force.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no structures to summarise")
    column = {f.name: np.array([getattr(r, f.name) for r in records]) for f in fields(Record)}
    atoms = column["free_atoms"]

    def pooled(values: NDArray) -> float:
        return float((atoms * values).sum() / max(atoms.sum(), 1))

    row = {
        "structures": len(records),
        "delta_q_mean": float(column["delta_q"].mean()),
        "delta_q_total": float(column["delta_q"].sum()),
        "delta_q_median": float(np.median(column["delta_q"])),
        "basins": float((column["delta_q"] < basin.delta_q).mean()),
        "basins_displacement": float((column["max_displacement"] < basin.displacement).mean()),
        "basins_paper": float((column["delta_q"] < PAPER_DELTA_Q).mean()),
        "shift_removed": float(column["shift_removed"].mean()),
        "mae": float(column["mae"].mean()),
        "adwt": share_below(column["mean_distance"], ADWT_THRESHOLDS),
        "positions_mae": pooled(column["leaderboard_mae"]),
        "positions_mse": pooled(column["leaderboard_mse"]),
        "average_distance_within_threshold": share_below(
            column["leaderboard_distance"], ADWT_THRESHOLDS
        ),
        "converged": float(column["converged"].mean()),
        "diverged": float(column["diverged"].mean()),
        "evaluations": float(column["evaluations"].mean()),
    }
    forces = column["reference_force"]
    if all(force is not None for force in forces):
        row["fbt"] = share_below(forces, FBT_THRESHOLD)
        row["afbt"] = share_below(forces, AFBT_THRESHOLDS)
    return row


def to_rows(records: list[Record]) -> list[dict[str, object]]:
    """Records as plain dictionaries, for JSON."""
    return [asdict(r) for r in records]


def each_once(records: list[Record]) -> list[Record]:
    """Sorted by name, then row, without the repeats of a row that padding a sampler makes.

    Two rows of one name are two structures, and both stay.
    """
    unique = {r.row: r for r in records}
    return sorted(unique.values(), key=lambda r: (r.sid, r.row))
