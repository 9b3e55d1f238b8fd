r"""Short runs at constant energy: does the potential make energy from nothing, and does the run hold?

With velocity Verlet the kinetic energy and the work of the forces along the way balance, whatever the
forces are, so their sum says nothing. What says something is a closed loop: the work along the way, and
straight back. A potential energy has none. So the energy of a point is taken as the work of bringing the
atoms there from the start along a straight line,

.. math:: U(X) = -\int_0^1 F(X_0 + s (X - X_0)) \cdot (X - X_0) \, ds,

which for forces that are a gradient is the energy itself, and kinetic energy plus U is what the run
should keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from fairchem_gdeq.audit.rows import NEITHER, Row, not_made, paired, share
from fairchem_gdeq.audit.settings import NVE
from fairchem_gdeq.data.rows import free_atoms, masses
from fairchem_gdeq.relax.packs import MAX_FORCE

CHECK = "dynamics"
HOT = 20.0  # times the temperature: from here on a run has exploded
MARKS = 4  # points of a run at which U is integrated
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)


@dataclass(frozen=True)
class Run:
    """What happened in a run.

    Attributes:
        name: of the structure.
        times: [t] of all steps, ps.
        kelvin: [t] temperature of the free atoms, K.
        marks: [m] times at which the energy is known, ps.
        made: [m] energy made from nothing until then, eV/atom.
        shift: how far the centre of mass has moved at the end, Angstrom; NaN where atoms are fixed.
        exploded: whether it had to be stopped.
    """

    name: str
    times: NDArray[np.float64]
    kelvin: NDArray[np.float64]
    marks: NDArray[np.float64]
    made: NDArray[np.float64]
    shift: float
    exploded: bool

    @property
    def drift(self) -> float:
        """Energy made from nothing, as it comes out over the whole run, meV/atom/ps; NaN if exploded."""
        if self.exploded or not len(self.marks):
            return float("nan")
        return float(1000 * self.made[-1] / self.marks[-1])

    @property
    def last_kelvin(self) -> float:
        """Mean temperature of the last quarter, K; NaN if exploded."""
        if self.exploded:
            return float("nan")
        return float(self.kelvin[-max(1, len(self.kelvin) // 4) :].mean())


def run_nve(name: str, structure: Atoms, calculator: Calculator, nve: NVE, seed: int) -> Run:
    """A run from a structure at rest.

    Velocities are drawn for twice the temperature, because half of the energy goes into the bonds.

    Args:
        name: of the structure.
        structure: near a minimum, with ``FixAtoms``; it stays as it is.
        calculator: of the potential.
        nve: length and temperature.
        seed: of the velocities, so that two potentials begin alike.
    """
    atoms = structure.copy()
    atoms.set_masses(masses(structure))
    atoms.calc = calculator
    random = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * nve.kelvin, rng=random)
    free = bool(free_atoms(structure).all())
    if free:
        Stationary(atoms)
    start, kinetic = atoms.positions.copy(), atoms.get_kinetic_energy()
    every = max(1, nve.steps // MARKS)
    kelvin, marks, made = [atoms.get_temperature()], [], []
    exploded = False
    mover = VelocityVerlet(atoms, timestep=nve.fs * units.fs)
    for step in range(1, nve.steps + 1):
        mover.run(1)
        kelvin.append(atoms.get_temperature())
        force = np.abs(atoms.get_forces()).max(initial=0.0)
        exploded = not (force < MAX_FORCE and kelvin[-1] < HOT * max(nve.kelvin, 1.0))
        if exploded:
            break
        if step % every == 0 or step == nve.steps:
            gained = atoms.get_kinetic_energy() - kinetic + _line_energy(atoms, start)
            marks.append(step * nve.fs / 1000)
            made.append(gained / len(atoms))
    moved = np.average(atoms.positions - start, axis=0, weights=atoms.get_masses())
    shift = float(np.linalg.norm(moved)) if free and not exploded else float("nan")
    times = np.arange(len(kelvin)) * nve.fs / 1000
    return Run(name, times, np.array(kelvin), np.array(marks), np.array(made), shift, exploded)


def dynamics_rows(base: Sequence[Run], tuned: Sequence[Run]) -> list[Row]:
    """Two models' runs from the same structures and velocities, run by run."""
    if not base:
        return [not_made(CHECK, "runs", "There are none: audit.nve.runs=0, or no structures.")]
    names = {run.name for each in (base, tuned) for run in each if run.exploded}
    burst = f"Exploded, with one of the two: {', '.join(sorted(names))}." if names else ""

    def of(value: Callable[[Run], float]) -> list[list[float]]:
        return [[value(run) for run in each] for each in (base, tuned)]

    kept = "Kinetic energy and the work along a straight line, whose sum a conserving force keeps."
    drifts, shifts = of(lambda run: abs(run.drift)), of(lambda run: run.shift)
    rows = [
        share(CHECK, "runs that exploded", of(lambda run: run.exploded), remark=burst),
        paired(CHECK, "energy from nothing", "meV/atom/ps", drifts, remark=kept),
        paired(CHECK, "temperature at the end", "K", of(lambda r: r.last_kelvin), good=NEITHER),
    ]
    if np.isfinite(shifts).any():
        rows.append(paired(CHECK, "drift of the centre of mass", "Å", shifts))
    return rows


def _line_energy(atoms: Atoms, start: NDArray[np.float64]) -> float:
    """U of the atoms where they are, eV, by Gauss-Legendre quadrature; free atoms alone."""
    line, here = atoms.positions - start, atoms.copy()
    here.calc = atoms.calc
    work = 0.0
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        here.set_positions(start + (node + 1) / 2 * line, apply_constraint=False)
        work += weight / 2 * float((here.get_forces() * line).sum())
    return -work
