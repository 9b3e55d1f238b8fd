"""What is known of each relaxed structure of a split."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple


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
        converged, diverged: how the relaxation ended; one for which memory did not suffice counts as
            diverged.
        cause: the name of the ``relax.Cause`` why it did not converge; ``none`` if it did, or was not to.
        evaluations: force evaluations.
        residual: largest force on a free atom at the end, eV/Angstrom.
        free_atoms: number of free atoms.
        shift_removed: rigid shift that was taken out before measuring, Angstrom; 0 where none is.
        leaderboard_distance: mean distance of free atoms from their targets, Angstrom.
        leaderboard_mae, leaderboard_mse: of free coordinates, Angstrom and Angstrom^2.
        reference_force: largest reference force on a free atom there, eV/Angstrom; infinite where
            it could not be calculated, None where there is no reference.
        reference_energy: reference energy there minus that at the target, eV; infinite where either
            could not be calculated, None where the reference has no energies.
        others: what metrics measure beyond that, by their names.
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
    cause: str = "none"
    reference_force: float | None = None
    reference_energy: float | None = None
    others: dict[str, float] = field(default_factory=dict, hash=False)


def to_rows(records: list[Record]) -> list[dict[str, object]]:
    """Records as plain dictionaries, for JSON."""
    rows = [asdict(r) for r in records]
    return [row | row.pop("others") for row in rows]


def each_once(records: list[Record]) -> list[Record]:
    """Sorted by name, then row, without the repeats of a row that padding a sampler makes.

    Two rows of one name are two structures, and both stay.
    """
    unique = {r.row: r for r in records}
    return sorted(unique.values(), key=lambda r: (r.sid, r.row))
