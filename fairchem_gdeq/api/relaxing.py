"""Relaxing any number of structures together; every one comes back, with what became of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray
from tqdm import tqdm

from fairchem_gdeq.api.callables import CallableField, CallablePotential
from fairchem_gdeq.api.job import Code, Job
from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import as_list, relaxed_copy


@dataclass(frozen=True, repr=False)
class Relaxations:
    """Structures after their relaxation, in the order in which they were given.

    Attributes:
        atoms: copies; those that could not be relaxed are as they were.
        codes: how each ended.
        reasons: what is wrong with those of ``BAD_INPUT`` and ``FAILED``, and why others have not
            converged, such as ``oscillates`` or ``exploded``; empty for those that have.
        evaluations: force evaluations [s].
        residual: largest force on a free atom at the end [s], eV/Angstrom; NaN if never relaxed.
    """

    atoms: list[Atoms]
    codes: list[Code]
    reasons: list[str]
    evaluations: NDArray[np.int64]
    residual: NDArray[np.float64]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether all forces fell below fmax [s]."""
        return np.array([code is Code.CONVERGED for code in self.codes], dtype=bool)

    def __len__(self) -> int:
        return len(self.atoms)

    def __repr__(self) -> str:
        counts = Counter(code.value for code in self.codes)
        said = ", ".join(f"{number} {code}" for code, number in counts.items())
        return f"{len(self)} relaxations: {said or 'none'}, {self.evaluations.sum()} evaluations"


def relax(
    structures: Atoms | Iterable[Atoms],
    potential: Potential | CallableField,
    *,
    fmax: float | None = None,
    max_steps: int | None = None,
    solver: Any = None,
    horizon: int | None = None,
    max_atoms: int | None = None,
    forces: bool = False,
    progress: bool = True,
) -> Relaxations:
    """Relax structures at fixed cell, many at a time: those that have ended make room for others.

    What is not given is as the potential's own ``task.relaxer`` says: one that was fine-tuned begins
    with the plain steps of its training. A net force is taken out of structures without fixed atoms.

    Args:
        structures: one or many, with FixAtoms or without, wrapped into the cell or not; they are not
            changed.
        potential: of ``load_potential`` or ``finetune``, or a field of ``from_callable``.
        fmax: largest force on a free atom at the end, eV/Angstrom.
        max_steps: displacements allowed to the solver.
        solver: such as ``gdeq.LBFGS()``, or a name: ``picard``, ``anderson``, ``fire``, ``lbfgs``.
        horizon: plain steps X + alpha F before it.
        max_atoms: atoms evaluated together; halved where memory runs out.
        forces: evaluate once more at the end, for ``atoms.get_forces()`` of the answers.
        progress: show a bar.

    Raises:
        TypeError: something is not an ``Atoms``, or the potential is something else.
    """
    given = as_list(structures)
    opened = CallablePotential(potential) if isinstance(potential, CallableField) else potential
    if not isinstance(opened, Potential | CallablePotential):
        raise TypeError(
            f"expected a potential of load_potential or finetune, or a field of from_callable, got "
            f"{type(potential).__name__}"
        )
    wanted = {
        "fmax": fmax,
        "max_steps": max_steps,
        "solver": solver,
        "horizon": horizon,
    }
    chosen = {key: value for key, value in wanted.items() if value is not None}
    task = replace(opened.task, relaxer=replace(opened.task.relaxer, **chosen))
    job = Job(given, opened, task, max_atoms or opened.atoms_together)
    with tqdm(total=len(given), desc="relax", unit="structure", disable=not progress) as bar:
        ended = dict(job.run(bar))
    ends = [ended[i] for i in range(len(given))]
    if missed := [i for i, e in enumerate(ends) if e.code in (Code.BAD_INPUT, Code.FAILED)]:
        shown = "; ".join(ends[i].reason for i in missed[:5])
        logging.warning(f"{len(missed)} of {len(given)} structures could not be relaxed: {shown}")
    out = [
        relaxed_copy(atoms, atoms.positions if end.positions is None else end.positions)
        for atoms, end in zip(given, ends, strict=True)
    ]
    if forces:
        sound = [i for i in range(len(given)) if i not in missed]
        found = opened.forces([out[i] for i in sound], max_atoms)
        for i, values in zip(sound, found, strict=True):
            out[i].calc = SinglePointCalculator(out[i], forces=values)
    return Relaxations(
        atoms=out,
        codes=[end.code for end in ends],
        reasons=[end.reason for end in ends],
        evaluations=np.array([end.evaluations for end in ends], dtype=np.int64),
        residual=np.array([end.residual for end in ends], dtype=np.float64),
    )
