"""Where relaxations with the two models end: near the target, converged, and in which shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import spglib
from ase import Atoms
from ase.geometry import find_mic
from numpy.typing import NDArray

from fairchem_gdeq.audit.rows import MORE, Row, not_made, paired, share
from fairchem_gdeq.audit.sample import Pair
from fairchem_gdeq.data.rows import free_atoms
from fairchem_gdeq.evaluation.basin import Basin

SYMPRECS = (1e-2, 1e-5)  # Angstrom: Matbench Discovery's two


class End(NamedTuple):
    """Where a model takes a start.

    Attributes:
        atoms: there; the start itself where it could not be relaxed.
        delta_q: from the target, amu^0.5 Angstrom; NaN where it could not be relaxed.
        converged: whether forces fell below fmax.
        sound: whether it was relaxed and did not diverge.
        failure: why it could not be relaxed; else empty.
    """

    atoms: Atoms
    delta_q: float
    converged: bool
    sound: bool
    failure: str = ""


@dataclass(frozen=True)
class Relaxed:
    """A pair and where both models take its start."""

    pair: Pair
    base: End
    tuned: End

    @property
    def ends(self) -> tuple[End, End]:
        """Of the base and of the tuned model."""
        return self.base, self.tuned


def relaxation_rows(check: str, relaxed: Sequence[Relaxed], basin: Basin, remark: str) -> list[Row]:
    """Delta Q, basins and convergence.

    Args:
        check: which structures they are.
        relaxed: of all ranks.
        basin: when a structure is in the right one.
        remark: on all of them.
    """
    if not relaxed:
        return [not_made(check, "Delta Q", remark or "There are no structures.")]
    failed = {r.pair.name: end.failure for r in relaxed for end in r.ends if end.failure}
    said = [f"{name}: {why}" for name, why in failed.items()]
    text = " ".join([remark, *(f"Could not be relaxed: {each}." for each in said[:3])]).strip()
    distances = of_ends(relaxed, lambda end: end.delta_q)
    right = of_ends(relaxed, lambda end: float(end.sound and end.delta_q < basin.delta_q))
    converged = of_ends(relaxed, lambda end: float(end.converged))
    logs = [np.log1p(values) for values in distances]
    return [
        paired(check, "Delta Q", "amu^0.5 Å", distances, remark=text),
        paired(check, "log(1 + Delta Q)", "", logs),
        share(check, f"right basins (Delta Q < {basin.delta_q:g})", right, good=MORE),
        share(check, "converged", converged, good=MORE),
    ]


def geometry_rows(check: str, relaxed: Sequence[Relaxed]) -> list[Row]:
    """RMSD from the target, and whether the space group is the target's."""
    usable = [r for r in relaxed if r.base.sound and r.tuned.sound]
    if not usable:
        return [not_made(check, "RMSD", "No structure was relaxed by both models.")]
    left = len(relaxed) - len(usable)
    remark = "Root mean square distance of atoms from their targets, in units of (V/n)^(1/3)."
    remark += f" {left} that one model could not relax are left out." if left else ""
    sizes = [[rmsd(r.ends[k].atoms, r.pair.target) for r in usable] for k in (0, 1)]
    rows = [paired(check, "RMSD", "", sizes, remark=remark)]
    for symprec in SYMPRECS:
        targets = [space_group(r.pair.target, symprec) for r in usable]
        agree = [
            [
                space_group(r.ends[k].atoms, symprec) == g
                for r, g in zip(usable, targets, strict=True)
            ]
            for k in (0, 1)
        ]
        symmetric = sum(group not in (None, 1) for group in targets)
        words = f"{symmetric} of {len(targets)} targets have any symmetry at this tolerance."
        rows.append(
            share(check, f"same space group at {symprec:g} Å", agree, good=MORE, remark=words)
        )
    return rows


def of_ends(relaxed: Sequence[Relaxed], value: Callable[[End], float]) -> list[NDArray[np.float64]]:
    """Of base and tuned model, [s] each; NaN where a structure could not be relaxed."""
    return [
        np.array([np.nan if r.ends[k].failure else value(r.ends[k]) for r in relaxed])
        for k in (0, 1)
    ]


def rmsd(atoms: Atoms, target: Atoms) -> float:
    """Root mean square distance of atoms from where they are in the target, in units of (V/n)^(1/3).

    Atoms correspond by their order, distances are those of the nearest image, and where no atom is fixed
    the common shift is taken out. In a structure that is not periodic V is that of the box around it, at
    least 1 Angstrom wide.
    """
    move, _ = find_mic(atoms.positions - target.positions, target.cell, target.pbc)
    if free_atoms(target).all():
        move, _ = find_mic(move - move.mean(0), target.cell, target.pbc)
        move = move - move.mean(0)
    volume = target.cell.volume
    if not target.pbc.any():
        volume = float(np.prod(np.maximum(np.ptp(target.positions, axis=0), 1.0)))
    length = (volume / len(target)) ** (1 / 3)
    return float(np.sqrt((move**2).sum(1).mean()) / length)


def space_group(atoms: Atoms, symprec: float) -> int | None:
    """Number of the space group; None where spglib finds none."""
    cell: Any = (np.asarray(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)
    if not atoms.pbc.all():
        return None
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:
        return None
    return None if found is None else int(found.number)
