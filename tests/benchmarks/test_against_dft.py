"""Potentials against stored minima: a perfect one is right, and errors are those of forces."""

from functools import partial

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from benchmarks import against_dft
from tests.data.springs import Springs

CELL = bulk("Si", cubic=True)


def moved(seed):
    atoms = CELL.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=0.2, size=atoms.positions.shape)
    return atoms


@pytest.fixture
def minima(tmp_path):
    """Of springs to the crystal, with two starts and a frame of each."""
    for name in ("test", "test_frames"):
        (tmp_path / name).mkdir()
        with connect(tmp_path / name / "data.aselmdb", type="aselmdb") as database:
            for seed in (0, 1):
                atoms = moved(seed)
                forces = forces_of_springs(atoms)
                if name == "test_frames":
                    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
                database.write(atoms, data={"sid": f"s{seed}", "pos_relaxed": CELL.positions})
    return against_dft.read(tmp_path)


def forces_of_springs(atoms, shift=0.0):
    return against_dft.forces_of(Springs(CELL.positions))(atoms) + shift


def test_the_theory_itself_is_right(minima):
    theory = Springs(CELL.positions)
    found = against_dft.measured(minima, partial(against_dft.by_reference, theory), theory)
    assert all(end.delta_q < 0.1 for end in (*found.ends, *found.kept))
    start = against_dft.distances(minima.starts, minima.targets)
    shown = against_dft.row("theory", found, against_dft.Measured(0.0, start, found.kept))
    assert shown.startswith("| theory | 0.0000 | 0.0")
    assert shown.count("| 2 of 2 |") == 2
    assert shown.endswith("| 2 : 0 |")


def test_a_minimum_that_lies_elsewhere_is_left(minima):
    """What a potential whose crystal is shifted on one atom does, from the theory's own minimum."""
    places = CELL.positions.copy()
    places[0] += 0.5
    other = Springs(places)
    found = against_dft.measured(minima, partial(against_dft.by_reference, other), other)
    mean, median, right = against_dft.far(found.kept)
    assert float(mean) == pytest.approx(float(median), abs=0.01) and float(mean) > 2
    assert right == "0 of 2" and found.error > 0.01


def test_errors_are_of_components(minima):
    assert against_dft.force_error(forces_of_springs, minima.frames) < 1e-6
    off = against_dft.force_error(lambda atoms: forces_of_springs(atoms, 0.03), minima.frames)
    assert off == pytest.approx(0.03, rel=1e-6)
