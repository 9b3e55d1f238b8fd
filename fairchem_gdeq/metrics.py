"""How good a relaxed structure is: Delta Q, basin capture, positions MAE, ADwT. In one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from fairchem_gdeq.relax.objective import free_displacement
from fairchem_gdeq.relax.segments import segment_max_norm, segment_sum
from fairchem_gdeq.relax.structures import Structures

PAPER_DELTA_Q = 3.0  # amu^0.5 Angstrom: the papers' 300 summed over about 100 structures
ADWT_THRESHOLDS = np.arange(0.01, 0.5, 0.001)  # Angstrom, as the IS2RS leaderboard


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


@dataclass(frozen=True)
class Record:
    """One relaxed structure against its target; distances after drift removal where pinned.

    Attributes:
        sid: its name in the data set.
        delta_q: eq. 2, amu^0.5 Angstrom.
        max_displacement: of a free atom from its target, Angstrom.
        mean_distance: of free atoms from their targets, Angstrom (what ADwT thresholds).
        mae: mean absolute error of a free coordinate, Angstrom.
        converged, diverged: how the relaxation ended.
        evaluations: force evaluations.
        residual: largest force on a free atom at the end, eV/Angstrom.
    """

    sid: str
    delta_q: float
    max_displacement: float
    mean_distance: float
    mae: float
    converged: bool
    diverged: bool
    evaluations: int
    residual: float


def measure(
    sids: list[str],
    positions: Tensor,
    target: Tensor,
    structures: Structures,
    pin: Tensor,
    converged: Tensor,
    diverged: Tensor,
    evaluations: Tensor,
    residual: Tensor,
) -> list[Record]:
    """Records of a batch: positions and target [n, 3] in Angstrom, the rest [s]."""
    s = structures
    move = free_displacement(positions.double(), target.double(), _double(s), pin)
    number = segment_sum(s.free.double(), s.batch, s.count).clamp_min(1.0)
    squared = (s.masses.double()[:, None] * move * move).sum(-1)
    columns = (
        segment_sum(squared, s.batch, s.count).sqrt(),
        segment_max_norm(move, s.batch, s.count),
        segment_sum(move.norm(dim=-1), s.batch, s.count) / number,
        segment_sum(move.abs().mean(-1), s.batch, s.count) / number,
        converged,
        diverged,
        evaluations,
        residual,
    )
    return [Record(*row) for row in zip(sids, *(c.tolist() for c in columns), strict=True)]


def _double(s: Structures) -> Structures:
    return Structures(s.batch, s.free, s.masses.double(), s.cell.double(), s.pbc)


def summarise(records: list[Record], basin: Basin) -> dict[str, float]:
    """The row of a results table; fractions are of all structures, diverged ones included.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no structures to summarise")
    column = {f.name: np.array([getattr(r, f.name) for r in records]) for f in fields(Record)}
    within = column["mean_distance"][:, None] < ADWT_THRESHOLDS[None]
    return {
        "structures": len(records),
        "delta_q_mean": float(column["delta_q"].mean()),
        "delta_q_total": float(column["delta_q"].sum()),
        "delta_q_median": float(np.median(column["delta_q"])),
        "basins": float((column["delta_q"] < basin.delta_q).mean()),
        "basins_displacement": float((column["max_displacement"] < basin.displacement).mean()),
        "basins_paper": float((column["delta_q"] < PAPER_DELTA_Q).mean()),
        "mae": float(column["mae"].mean()),
        "adwt": float(within.mean()),
        "converged": float(column["converged"].mean()),
        "diverged": float(column["diverged"].mean()),
        "evaluations": float(column["evaluations"].mean()),
    }


def to_rows(records: list[Record]) -> list[dict[str, object]]:
    """Records as plain dictionaries, for JSON."""
    return [asdict(r) for r in records]


def order_by_sid(records: list[Record]) -> list[Record]:
    """Sorted by name and without the repeats that padding a distributed sampler makes."""
    unique = {r.sid: r for r in records}
    return [unique[sid] for sid in sorted(unique)]


def finite_or_nan(values: Tensor) -> float:
    """Mean of the finite entries [s], NaN if there are none; for logs."""
    finite = values[torch.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
