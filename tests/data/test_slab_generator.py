"""What the slab set says of its targets, and that its splits share nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import add_adsorbate, hcp0001, molecule

FOLDER = Path(__file__).parents[2] / "data" / "slabs"


@pytest.fixture
def generator(monkeypatch):
    """The modules of ``data/slabs``, which are scripts, not a package."""
    for folder in (FOLDER.parent, FOLDER):
        monkeypatch.syspath_prepend(folder)
    for name in ("systems", "anomalies"):
        sys.modules.pop(name, None)
    import anomalies
    import systems

    return systems, anomalies


def co_on_titanium(height):
    slab = hcp0001("Ti", (3, 3, 2), vacuum=8.0)
    slab.set_tags(0)
    carbon_monoxide = molecule("CO")
    carbon_monoxide.set_tags(2)
    add_adsorbate(slab, carbon_monoxide, height, "fcc", mol_index=1)
    slab.pbc = True
    return slab


def test_anomalies(generator):
    _, anomalies = generator
    start = co_on_titanium(1.5)
    assert anomalies.anomaly(start, start) == ""
    assert anomalies.anomaly(start, co_on_titanium(4.5)) == "desorbed"
    apart = start.copy()
    oxygen = [atom.index for atom in apart if atom.symbol == "O"]
    apart.positions[oxygen] += [2.0, 0.0, -1.1]
    assert anomalies.anomaly(start, apart) == "dissociated"
    across = start.copy()  # the same molecule, half of it in the next periodic image
    across.positions[oxygen] += across.cell[0]
    assert anomalies.anomaly(across, start) == ""


def test_systems(generator):
    systems, _ = generator
    catalogue = systems.titanium(sites=4) + systems.other_metals()
    assert len({system.name for system in catalogue}) == len(catalogue) == 100
    assert sum(system.metal == "Ti" for system in catalogue) == 80
    assert set(systems.titanium(sites=2)) < set(catalogue)
    for system in catalogue[:: len(catalogue) // 6]:
        atoms = systems.build(system)
        tags = atoms.get_tags()
        fixed = atoms.constraints[0].index
        assert set(tags) == {0, 1, 2} and (tags[fixed] == 0).all() and len(fixed) == 18
        assert atoms.positions[tags == 2, 2].min() > atoms.positions[tags == 1, 2].mean() + 0.8
        np.testing.assert_array_equal(systems.build(system).positions, atoms.positions)
