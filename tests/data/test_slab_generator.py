"""What the slab set says of its targets, and that its splits share nothing."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, hcp0001, molecule
from ase.calculators.lj import LennardJones
from ase.db import connect
from ase.geometry import find_mic
from omegaconf import OmegaConf

from fairchem_gdeq.data.is2rs import IS2RSDataset
from tests.data.scripts import imported
from tests.data.springs import Springs

FOLDER = Path(__file__).parents[2] / "data" / "slabs"


@pytest.fixture
def generator():
    with imported("slabs", "systems", "anomalies", "plan", "generate", "explore") as modules:
        yield modules


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
    splits = generator.plan.splits()
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


@pytest.mark.parametrize(
    "split", ["train", "val", "test", "other_metals", "train_more", "val_more", "test_more"]
)
def test_splits_are_as_they_were_planned(split, generator):
    left_out = json.loads((FOLDER / "statistics.json").read_text())[split]["not_converged"]
    planned = [s for s in generator.plan.plan()[split] if s.name not in left_out]
    with connect(FOLDER / split / "data.aselmdb", type="aselmdb", readonly=True) as database:
        rows = list(database.select())
    assert [row.data["sid"] for row in rows] == [system.name for system in planned]
    for row, system in list(zip(rows, planned, strict=True))[::5]:
        start = generator.systems.build(system)
        np.testing.assert_allclose(
            row.positions, start.positions, rtol=0, atol=1e-5
        )  # as records are rounded


def test_second_round(generator):
    """200 / 40 / 60 on titanium with the first; splits share no fragment on a site; new starts."""
    plan = generator.plan.plan()
    counts = {split: len(members) for split, members in plan.items()}
    assert 64 + 0.95 * counts["train_more"] >= 200
    assert 6 + 0.95 * counts["val_more"] >= 40
    assert 8 + 0.95 * counts["test_more"] >= 59
    named = [system.name for members in plan.values() for system in members]
    explored = [system.name for which in (1, 2, 3) for system in generator.explore.starts(which)]
    assert len(set(named + explored)) == len(named) + len(explored)
    splits = {}
    for split, members in plan.items():
        for s in members:
            place = (s.metal, s.fragment, s.site)
            splits.setdefault(place, set()).add(split.removesuffix("_more"))
    assert all(len(found) == 1 for found in splits.values())
    for split in ("train_more", "val_more", "test_more"):
        assert {system.metal for system in plan[split]} == {"Ti"}
        sites = Counter(system.site for system in plan[split])
        assert max(sites.values()) <= 1.5 * min(sites.values())
    trained = Counter(s.fragment for s in plan["train"] + plan["train_more"])
    fragments = generator.systems.FRAGMENTS | generator.systems.MORE_FRAGMENTS
    assert set(trained) == set(fragments) and min(trained.values()) >= 3


def test_new_fragments_bind_by_the_atom_that_is_lowest(generator):
    """Apart from hydrogen, which may hang lower when the fragment is tilted."""
    for system in generator.systems.more_titanium():
        atoms = generator.systems.build(system)
        formula, binding = generator.systems.MORE_FRAGMENTS[system.fragment]
        adsorbate = np.flatnonzero(atoms.get_tags() == 2)
        assert list(atoms.symbols[adsorbate]) == list(molecule(formula).symbols)
        heavy = [i for i in adsorbate if atoms.symbols[i] != "H"] or adsorbate
        assert atoms.positions[adsorbate[binding], 2] <= atoms.positions[heavy, 2].min() + 0.1
        apart = atoms.get_all_distances(mic=True)[np.ix_(adsorbate, atoms.get_tags() != 2)]
        assert apart.min() > 1.0, system.name


def test_order_of_the_work(generator):
    """Validation and test come before training and grow together."""
    order = [split for split, _ in generator.plan.in_order(generator.plan.plan())]
    more = [split for split in order if split.endswith("_more")]
    assert order[-len(more) :] == more
    held = more[: 54 + 36]
    assert Counter(held) == {"test_more": 54, "val_more": 36}
    for done in (10, 45, 80):
        assert abs(Counter(held[:done])["val_more"] - done * 36 / 90) <= 1.5


def test_pack(generator, tmp_path):
    members = generator.plan.plan()["val_more"][:3]
    targets = {}
    for system, lift in zip(members, (0.0, 6.0, 0.0), strict=True):
        start = generator.systems.build(system)
        target = start.positions + 0.1
        target[start.get_tags() == 2, 2] += lift
        target[start.get_tags() == 0] = start.positions[start.get_tags() == 0]
        targets[system.name] = target
        record = generator.generate.file_of(system, tmp_path / "relaxed")
        record.parent.mkdir(exist_ok=True)
        one = generator.relaxing.Start(record, partial(generator.systems.build, system), 12)
        springs = partial(Springs, target)
        generator.sevennet.relax_one(one, springs, fmax=1e-3, max_steps=300)
    systems = {"val_more": members}
    record.rename(tmp_path / "away.npz")
    with pytest.raises(generator.packing.Incomplete, match=f"2 of 3 .*{members[2].name} is"):
        generator.generate.pack("val_more", systems, tmp_path / "relaxed", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "away.npz").rename(record)
    generator.generate.pack("val_more", systems, tmp_path / "relaxed", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "statistics.json").read_text())["val_more"]
    assert found["structures"] == 3 and found["not_converged"] == []
    assert found["anomalies"]["desorbed"] == [members[1].name]
    rows = IS2RSDataset({"src": str(tmp_path / "out/val_more"), "a2g_args": {"task_name": "oc25"}})
    for row, system in zip(rows, members, strict=True):
        start = generator.systems.build(system)
        np.testing.assert_allclose(row.pos, start.positions, atol=1e-5)
        np.testing.assert_allclose(row.pos_relaxed, targets[system.name], atol=1e-3)
        assert (row.fixed.bool().numpy() == (start.get_tags() == 0)).all()
        assert (row.tags.numpy() == start.get_tags()).all()
    frames = tmp_path / "out" / "val_more_frames" / "data.aselmdb"
    with connect(frames, type="aselmdb", readonly=True) as database:
        kept = list(database.select())
    assert len(kept) == found["frames"] and len(kept) >= 6
    for frame in kept:
        stretch = frame.positions - targets[frame.data["sid"].rsplit("_", 1)[0]]
        np.testing.assert_allclose(frame.forces, -2.0 * stretch, atol=1e-3)


def test_explored_frames_begin_at_the_start_and_keep_what_is_fixed(generator, tmp_path):
    systems = [generator.systems.System("Ti", "CO", "fcc", turn=1)]
    start = generator.systems.build(systems[0])
    reference = generator.explore.explore.Reference("ase.calculators.lj.LennardJones", ("rc=3",))
    base = str(FOLDER / "base" / "esen.pt")
    summary = generator.explore.run(base, systems, tmp_path / "round1", reference=reference)
    rows = generator.generate.explored(tmp_path)
    assert 1 < len(rows) == summary.packed <= 6 and summary.frames == 6
    assert rows[0][1] == {"sid": f"{systems[0].name}_step0"}
    frames = [frame for frame, _ in rows]
    moves = [find_mic(f.positions - start.positions, start.cell)[1] for f in frames]
    assert moves[0].max() < 1e-4
    fixed = start.constraints[0].index
    assert max(move[fixed].max() for move in moves) < 1e-4 and moves[-1].max() > 0.05
    for frame in frames:
        again = frame.copy()
        again.calc = LennardJones(rc=3)
        assert (frame.get_forces(apply_constraint=False)[fixed] == 0).all()
        np.testing.assert_allclose(frame.get_forces(), again.get_forces(), atol=0.3)
        assert np.linalg.norm(frame.get_forces(), axis=1).max() < 20


def test_shipped_weights_are_the_averaged_ones_once(generator, tmp_path):
    checkpoint = torch.load(FOLDER.parent / "si" / "base" / "esen.pt", weights_only=False)
    checkpoint.model_state_dict = {
        name: w + 1 for name, w in checkpoint.model_state_dict.items()
    }  # as training leaves them, beside their average
    whole = OmegaConf.create({"job": "of a machine", "model": checkpoint.model_config})
    checkpoint.model_config = dict(whole.model)  # parts of the whole, as fairchem has them
    last = {name: w.clone() for name, w in checkpoint.model_state_dict.items()}
    torch.save(checkpoint, tmp_path / "both.pt")
    torch.save(generator.ship.fairchem2(checkpoint), tmp_path / "averaged.pt")
    shipped = torch.load(tmp_path / "averaged.pt", weights_only=False)
    averaged = shipped.ema_state_dict
    assert all(
        torch.equal(w, averaged[f"module.{name}"]) for name, w in shipped.model_state_dict.items()
    )
    assert any(not torch.equal(w, last[name]) for name, w in shipped.model_state_dict.items())
    texts = [(tmp_path / f"{name}.pt").read_bytes() for name in ("both", "averaged")]
    assert [b"of a machine" in text for text in texts] == [True, False]
    sizes = [(tmp_path / f"{name}.pt").stat().st_size for name in ("averaged", "both")]
    assert sizes[0] < 0.6 * sizes[1]
