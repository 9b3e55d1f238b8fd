"""Force errors where all atoms are nearer to each other than at rest, and farther: by a reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from fairchem_gdeq.audit.frames import force_error
from fairchem_gdeq.audit.rows import Row, paired
from fairchem_gdeq.audit.sample import Frame, Pair, Sample
from fairchem_gdeq.evaluation.reference import asking

CHECK = "distances"
FACTORS = (0.9, 1.1)  # of all lengths
Labelled = Frame | str  # or why there are no forces


def label(pairs: Sequence[Pair], factor: float, calculator: Calculator) -> list[Labelled]:
    """The targets with all lengths times ``factor``, and a reference's forces there."""
    return [_labelled(pair, factor, calculator) for pair in pairs]


def _labelled(pair: Pair, factor: float, calculator: Calculator) -> Labelled:
    atoms = strained(pair.target, factor)
    trial = atoms.copy()
    trial.calc = calculator
    try:
        with asking(calculator):
            forces = np.array(trial.get_forces(apply_constraint=False), dtype=float)
    except Exception as error:  # whatever a reference raises: the others go on
        logging.warning(f"reference at {pair.name}, lengths times {factor:g}: {error}")
        return f"{pair.name}: {type(error).__name__}: {' '.join(str(error).split())}"
    if not np.isfinite(forces).all():
        return f"{pair.name}: the reference's forces are not finite"
    return Frame(pair.name, atoms, forces, None)


def strained(atoms: Atoms, factor: float) -> Atoms:
    """A copy with the cell and all positions scaled, fixed atoms too."""
    out: Atoms = atoms.copy()
    constraints = out.constraints
    out.set_constraint()
    out.positions *= factor
    out.set_cell(atoms.cell * factor)
    out.set_constraint(constraints)
    return out


def strained_row(
    factor: float,
    labelled: Sample[Frame],
    base: Sequence[NDArray[np.float64]],
    tuned: Sequence[NDArray[np.float64]],
) -> Row:
    """Errors of both models' forces [n, 3] on structures with a reference's forces, eV/Angstrom."""
    errors = [
        [force_error(*each) for each in zip(labelled.items, of, strict=True)]
        for of in (base, tuned)
    ]
    return paired(
        CHECK,
        f"force error at {factor:g} times all lengths",
        "eV/Å",
        errors,
        remark=labelled.remark,
    )
