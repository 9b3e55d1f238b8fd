"""Structures that coincide are found whatever was done to them, and no others."""

from glob import glob
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.data import overlap
from fairchem_gdeq.data.overlap import SAME, Named, find_overlaps, fingerprint, separation

SILICON = Path(__file__).parents[2] / "data" / "si"
seeds = st.integers(0, 10_000)
periodic = st.tuples(st.booleans(), st.booleans(), st.booleans())


def structure(seed, pbc=(True, True, True)):
    """Atoms of three elements at least 1.2 Angstrom apart, in a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(5, 8, 3)) + np.tril(rng.uniform(-2, 2, (3, 3)), -1)
    atoms = Atoms(cell=cell, pbc=pbc)
    while len(atoms) < rng.integers(2, 10):
        more = atoms + Atoms("X", scaled_positions=rng.random((1, 3)), cell=cell)
        distances = more.get_distances(-1, range(len(atoms)), mic=True) if len(atoms) else [9.0]
        if min(distances) > 1.2:
            atoms = more
    atoms.numbers = rng.choice([6, 14, 32], len(atoms))
    return atoms


def disguised(atoms, seed, shift=True):
    """The same structure: another order, other images, and shifted where it may be."""
    rng = np.random.default_rng(seed)
    out = atoms[rng.permutation(len(atoms))]
    images = rng.integers(-2, 3, (len(out), 3)) * out.pbc
    out.positions += images @ np.asarray(out.cell)
    if shift:
        out.positions += rng.uniform(-9, 9, 3)
    return out


def found(one, other, tolerance=SAME):
    return list(find_overlaps([Named("a frame", one)], [Named("a target", other)], tolerance))


@given(seeds, periodic)
def test_order_images_and_rigid_shifts_hide_nothing(seed, pbc):
    atoms = structure(seed, pbc)
    (pair,) = found(disguised(atoms, seed + 1), atoms)
    assert (pair.frame, pair.held) == ("a frame", "a target") and pair.distance < 1e-9
    np.testing.assert_allclose(
        fingerprint(disguised(atoms, seed + 1)), fingerprint(atoms), atol=1e-9
    )


@given(seeds, periodic, st.floats(0, 1))
def test_rounding_hides_nothing(seed, pbc, size):
    """Moves of less than half of the tolerance, so that they are within it once the mean is out."""
    atoms = structure(seed, pbc)
    moved = disguised(atoms, seed + 1)
    way = np.random.default_rng(seed + 2).normal(size=moved.positions.shape)
    moved.positions += (
        0.49 * size * SAME * way / np.linalg.norm(way, axis=1).max(initial=1e-9, keepdims=True)
    )
    assert found(moved, atoms)


@given(seeds, periodic, st.floats(3, 1000), st.booleans())
def test_an_atom_elsewhere_is_another_structure(seed, pbc, size, shift):
    atoms = structure(seed, pbc)
    moved = disguised(atoms, seed + 1, shift)
    way = np.random.default_rng(seed + 2).normal(size=3)
    moved.positions[0] += size * SAME * way / np.linalg.norm(way)
    assert not found(moved, atoms)


@given(seeds, periodic, st.floats(0, 0.5))
def test_a_fingerprint_changes_by_no_more_than_two_atoms_move(seed, pbc, size):
    """Or a pair that coincides could be lost by it."""
    atoms = structure(seed, pbc)
    moved = atoms.copy()
    way = np.random.default_rng(seed).normal(size=atoms.positions.shape)
    way *= size / np.linalg.norm(way, axis=1)[:, None]
    moved.positions += way
    assert np.abs(fingerprint(moved) - fingerprint(atoms)).max() <= 2 * size + 1e-9


def test_a_turned_structure_is_another_one():
    atoms = structure(3, (False, False, False))
    turned = atoms.copy()
    turned.rotate(40, "z")
    assert not found(turned, atoms)


def test_elements_cells_and_open_directions_tell_structures_apart():
    atoms = structure(5)
    other = atoms.copy()
    other.numbers[0] = 50
    wider = atoms.copy()
    wider.cell[0, 0] += 0.01
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    swapped = atoms.copy()
    first, second = np.flatnonzero(atoms.numbers == 14)[0], np.flatnonzero(atoms.numbers != 14)[0]
    swapped.numbers[[first, second]] = atoms.numbers[[second, first]]
    for changed in (other, wider, slab, swapped):
        assert not found(changed, atoms)
    assert found(atoms.copy(), atoms)


@pytest.mark.parametrize("atoms", [Atoms("H"), Atoms("Si", cell=[3] * 3, pbc=True), Atoms("CO")])
def test_the_smallest_structures(atoms):
    if len(atoms) > 1:
        atoms.positions[1, 0] = 1.1
    assert found(atoms.copy(), atoms)


def test_ten_thousand_frames_are_hardly_ever_compared_atom_by_atom(monkeypatch):
    """All of one composition and cell, as the frames of one material are."""
    rng = np.random.default_rng(0)
    sites = structure(1).positions
    rattled = [
        Atoms("Si" * len(sites), sites + rng.normal(scale=0.05, size=sites.shape))
        for _ in range(300)
    ]
    compared = []

    def count(*pair):
        compared.append(pair)
        return separation(*pair)

    monkeypatch.setattr(overlap, "separation", count)
    named = [Named(str(i), atoms) for i, atoms in enumerate(rattled)]
    pairs = list(find_overlaps([*named[150:], named[7]], named[:150]))
    assert [(each.frame, each.held) for each in pairs] == [("7", "7")]
    assert len(compared) < 10


def rows_of(folder):
    """Name, start and target of the rows of a folder of ASE-LMDBs; frames have no target."""
    for file in sorted(glob(f"{SILICON / folder}/*.aselmdb")):
        with connect(file, type="aselmdb") as database:
            for row in database.select():
                yield str(row.data["sid"]), row.toatoms(), row.data.get("pos_relaxed")


def ends_of(*folders):
    """Starts and targets of splits."""
    for folder in folders:
        for sid, start, target in rows_of(folder):
            end = start.copy()
            end.positions = target
            yield Named(f"X_0 of {sid}", start)
            yield Named(f"X_gt of {sid}", end)


def frames_of(folder):
    return [Named(sid, atoms) for sid, atoms, _ in rows_of(folder)]


def test_frames_of_the_validation_relaxations_are_told():
    """Every start and every target is among them, by its atoms."""
    held = list(ends_of("val"))
    pairs = list(find_overlaps(frames_of("val_frames"), held))
    assert {pair.held for pair in pairs} == {each.name for each in held}
    for pair in pairs:
        assert pair.frame.rpartition("_")[0] == pair.held.rpartition(" ")[2]


@pytest.mark.parametrize("folder", ["train_frames", "train_more_frames"])
def test_the_training_frames_of_silicon_are_of_no_held_out_structure(folder):
    held = [*ends_of("test", "val", "test_more", "val_more"), *frames_of("val_frames")]
    assert list(find_overlaps(frames_of(folder), held)) == []
