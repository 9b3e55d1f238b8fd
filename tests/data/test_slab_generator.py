"""What the slab set says of its targets, and that its splits share nothing."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, hcp0001, molecule
from ase.geometry import find_mic

FOLDER = Path(__file__).parents[2] / "data" / "slabs"


@pytest.fixture
def generator(monkeypatch):
    """The modules of ``data/slabs``, which are scripts, not a package."""
    for folder in (FOLDER.parent, FOLDER):
        monkeypatch.syspath_prepend(folder)
    scripts = ("systems", "anomalies", "generate", "explore", "ship")
    for name in scripts:
        sys.modules.pop(name, None)
    return SimpleNamespace(**{name: import_module(name) for name in scripts})


def co_on_titanium(height):
    slab = hcp0001("Ti", (3, 3, 2), vacuum=8.0)
    slab.set_tags(0)
    carbon_monoxide = molecule("CO")
    carbon_monoxide.set_tags(2)
    add_adsorbate(slab, carbon_monoxide, height, "fcc", mol_index=1)
    slab.pbc = True
    return slab


def test_anomalies(generator):
    anomalies = generator.anomalies
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
    systems = generator.systems
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


def test_explored_starts_are_new_and_not_of_held_out_systems(generator):
    splits = generator.generate.splits()
    held = {s.name for split in ("test", "val") for s in splits[split]}
    rounds = [generator.explore.starts(which) for which in (1, 2)]
    names = [system.name for systems in rounds for system in systems]
    assert len(names) == len(set(names)) == 2 * (66 * 3 + 20 * 2)
    assert not held & {name.rsplit("-turn", 1)[0] for name in names}
    first, again = rounds[0][3:5]
    assert first.name.rsplit("-turn", 1)[0] == again.name.rsplit("-turn", 1)[0]
    assert (
        np.abs(
            generator.systems.build(first).positions - generator.systems.build(again).positions
        ).max()
        > 0.1
    )


def test_visited_structures_begin_at_the_start_and_keep_what_is_fixed(generator):
    system = generator.systems.System("Ti", "CO", "fcc", turn=1)
    start = generator.systems.build(system)
    start.info["sid"] = system.name
    frames = generator.explore.visited(start, str(FOLDER / "base" / "esen.pt"))
    assert 1 < len(frames) <= generator.explore.FRAMES
    moves = [find_mic(f.positions - start.positions, start.cell)[1] for f in frames]
    assert moves[0].max() < 1e-5
    assert max(move[start.constraints[0].index].max() for move in moves) < 1e-5
    assert moves[-1].max() > 0.05


def test_shipped_weights_are_the_averaged_ones_once(generator, tmp_path):
    checkpoint = torch.load(FOLDER.parent / "si" / "base" / "esen.pt", weights_only=False)
    last = {name: w.clone() for name, w in checkpoint.model_state_dict.items()}
    torch.save(checkpoint, tmp_path / "both.pt")
    torch.save(generator.ship.fairchem2(checkpoint), tmp_path / "averaged.pt")
    shipped = torch.load(tmp_path / "averaged.pt", weights_only=False)
    averaged = shipped.ema_state_dict
    assert all(
        torch.equal(w, averaged[f"module.{name}"]) for name, w in shipped.model_state_dict.items()
    )
    assert any(not torch.equal(w, last[name]) for name, w in shipped.model_state_dict.items())
    sizes = [(tmp_path / f"{name}.pt").stat().st_size for name in ("averaged", "both")]
    assert sizes[0] < 0.6 * sizes[1]
