"""What OC20 calls an anomaly, on adsorbates that are put there by hand."""

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms

from fairchem_gdeq.evaluation.anomalies import anomalies, bonded, has_adsorbate


@pytest.fixture
def start():
    """CO upright on top of copper."""
    slab = fcc111("Cu", (3, 3, 3), vacuum=7.0)
    slab.set_tags(np.where(slab.get_tags() == 1, 1, 0))
    adsorbate = molecule("CO")
    adsorbate.set_tags(2)
    add_adsorbate(slab, adsorbate, 1.9, "ontop", mol_index=1)
    slab.pbc = True
    return slab


def moved(atoms, index, by):
    out = atoms.copy()
    out.positions[index] += by
    return out


def test_each_kind_by_itself(start):
    oxygen, carbon = (start.symbols.search(s)[0] for s in ("O", "C"))
    top = int(np.argmax(np.where(start.get_tags() == 1, start.positions[:, 0], -1)))
    assert has_adsorbate(start) and anomalies(start, start) == []
    assert anomalies(start, moved(start, [oxygen, carbon], [0, 0, 3.0])) == ["desorbed"]
    assert anomalies(start, moved(start, [oxygen], [2.2, 0, -0.6])) == ["dissociated"]
    assert anomalies(start, moved(start, [top], [0, 0, 2.5])) == ["reconstructed"]
    below = moved(start, [oxygen, carbon], [1.3, 0.7, -4.0])
    assert "intercalated" in anomalies(start, below)


def test_periodic_images_and_small_moves_are_no_anomaly(start):
    across = start.copy()
    across.positions[-1] += across.cell[0]
    assert anomalies(start, across) == []
    rattled = start.copy()
    rattled.rattle(0.05, seed=1)
    assert anomalies(start, rattled) == []
    start.set_tags(0)
    assert not has_adsorbate(start)


def test_fixed_atoms_make_no_difference(start):
    oxygen = start.symbols.search("O")
    apart = moved(start, oxygen, [2.2, 0, -0.6])
    start.set_constraint(FixAtoms(range(9)))
    assert anomalies(start, apart) == ["dissociated"]


def test_bonds_agree_with_distances(start):
    from ase.data import covalent_radii

    radii = covalent_radii[start.numbers]
    near = start.get_all_distances(mic=True) < 1.25 * (radii[:, None] + radii)
    np.fill_diagonal(near, False)
    np.testing.assert_array_equal(bonded(start, 1.25), near)
