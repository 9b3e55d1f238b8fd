"""Force training beside the signal: which frames, which labels, and what is refused."""

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixCartesian
from ase.db import connect
from fairchem.core.common import distutils

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.replay import ForceReplay, forces_loss, open_frames, open_replay
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import Relaxer, make_signal
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.steps import differentiate


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    small.write_frames(folder, small.silicon(7))
    return folder


def replay(folder, **settings):
    return ForceReplay(src=str(folder), dataset="si", **{"max_atoms": 16, **settings})


def opened(folder, **settings):
    (task,) = small.tasks()
    return replay(folder, **settings).open(task, small.model("esen", double=False))


def test_every_frame_once_an_epoch_in_another_order_and_the_same_again(frames):
    batches, again = opened(frames), opened(frames)
    count = len(batches.sampler)
    first, second = (
        [batches(number, None, None) for number in range(k * count, (k + 1) * count)]
        for k in range(2)
    )
    epochs = [[sid for batch in found for sid in batch.sid] for found in (first, second)]
    assert len(set(epochs[0])) == 7 and sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    late = again(count + 1, None, None)  # as a resumed run begins
    assert late.sid == second[1].sid
    torch.testing.assert_close(late.pos, second[1].pos)


def test_labels_and_loss_are_those_of_the_files(frames):
    """The loss against its formula: the mean length of an atom's error, in units of the rmsd."""
    (task,) = small.tasks()
    model = small.model("esen", double=False).eval()
    batches = opened(frames, max_atoms=100)
    batch, task = batches(0, None, None), batches.task
    with connect(frames / "data.aselmdb", type="aselmdb") as database:
        known = {row.data["sid"]: row.toatoms() for row in database.select()}
    found = batch[task.name].split(batch.natoms.tolist())
    for sid, forces in zip(batch.sid, found, strict=True):
        np.testing.assert_allclose(forces, known[sid].get_forces(apply_constraint=False), atol=1e-6)
    predicted = HydraForceField.frozen(model, [task], batch)(batch.pos).detach()
    errors = (predicted - batch[task.name]) / task.normalizer.rmsd
    free = (
        batch.fixed == 0 if task.train_on_free_atoms else torch.ones_like(batch.fixed, dtype=bool)
    )
    loss = forces_loss(model, task, batch)
    assert float(loss) == pytest.approx(float(errors[free].norm(dim=1).mean()), rel=1e-5)
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_labels_of_the_base_stay_its_own():
    """On the way from X_0 to X_K, and unmoved by what the model learns."""
    (task,) = small.tasks()
    model = small.model("esen", double=False).eval()
    batches = ForceReplay(src="base", dataset="si", max_atoms=16).open(task, model)
    batch = small.batch(small.silicon(2), double=False)
    batch.pos_relaxed = batch.pos + 0.01
    batch.mass, batch.row = torch.ones(len(batch.pos)), torch.arange(2)
    batch.sid = ["a", "b"]
    operator = IS2RS(alpha=0.05, relaxer=Relaxer(horizon=2)).operator(model, [task], batch)
    report = differentiate(make_signal("truncated_bptt", horizon=2, max_unroll=2), operator, batch)
    task = batches.task
    moved = batches(3, batch, report)
    way = report.handoff - batch.pos
    share = ((moved.pos - batch.pos) * way).sum(1) / (way * way).sum(1).clamp(min=1e-12)
    for part, points in zip(
        way.split(batch.natoms.tolist()), share.split(batch.natoms.tolist()), strict=True
    ):
        seen = points[part.norm(dim=1) > 1e-3]
        assert len(seen) and 0 < float(seen.mean()) < 1
        torch.testing.assert_close(seen, seen.mean().expand_as(seen), atol=1e-2, rtol=0)
    label = moved[task.name].clone()
    torch.testing.assert_close(
        label,
        HydraForceField.unfrozen(model, [task], moved)(moved.pos).detach(),
        atol=1e-5,
        rtol=1e-4,
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    torch.testing.assert_close(batches(3, batch, report)[task.name], label)
    assert float(forces_loss(model, task, moved)) > 1e-3


def test_frames_without_forces_are_named(tmp_path):
    structures = small.silicon(3)
    small.write_frames(tmp_path, structures)
    with connect(tmp_path / "data.aselmdb", type="aselmdb") as database:
        database.write(structures[0], data={"sid": "bare"})
    np.savez(tmp_path / "metadata.npz", natoms=np.array([8] * 4))
    with pytest.raises(ValueError, match=r"1 of 4 have no forces.*Expected forces in eV/Angstrom"):
        opened(tmp_path)


def test_forces_that_are_not_finite_are_named(tmp_path):
    structures = small.silicon(2)
    small.write_frames(tmp_path, structures, spoil=1)
    with pytest.raises(ValueError, match=r"1 of 2 have no forces, or some that are not finite"):
        opened(tmp_path)


def test_constraints_of_frames_are_fixed_atoms(tmp_path):
    """fairchem knows FixAtoms alone; atoms that are held in all directions are fixed for it too."""
    structures = small.silicon(2)
    structures[0].set_constraint(FixCartesian([1, 4]))
    structures[1].set_constraint(FixAtoms([2]))
    small.write_frames(tmp_path / "held", structures)
    found = open_frames([str(tmp_path / "held")], "si")
    rows = [found[i] for i in range(2)]
    fixed = {row.sid[0]: row.fixed.nonzero().flatten().tolist() for row in rows}
    assert fixed == {"frame0": [1, 4], "frame1": [2]}


def test_fewer_batches_than_ranks(frames, monkeypatch):
    monkeypatch.setattr(distutils, "get_world_size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"fewer than 3 batches of max_atoms=40.*forces\.max_atoms"
    ):
        opened(frames, max_atoms=40)


def test_a_batch_too_small_for_any_frame(frames):
    with pytest.raises(ValueError, match=r"none is within forces\.max_atoms=3"):
        opened(frames, max_atoms=3)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"updates": -1}, "forces.updates=-1: expected at least 0"),
        ({"limit": float("nan")}, "forces.limit=nan"),
        ({"alone": 1.5}, "forces.alone=1.5: expected a share of the run"),
        ({"src": "base", "updates": 2}, "have nothing to teach without a signal"),
        ({"src": "base", "alone": 0.5}, "have nothing to teach without a signal"),
    ],
)
def test_settings_that_cannot_be_meant(settings, said):
    with pytest.raises(ValueError, match=said):
        ForceReplay(**{"src": "x", "dataset": "si", "max_atoms": 9, **settings})


def test_the_bases_own_forces_set_no_limit():
    """A limit would hold a model at its base, where their gradient is zero."""
    settings = {"dataset": "si", "max_atoms": 9, "limit": 0.5}
    assert ForceReplay("base", **settings).longest == float("inf")
    assert ForceReplay("frames", **settings).longest == 0.5


def test_no_source_is_no_replay():
    assert open_replay(None, dataset="si", max_atoms=9) is None


@pytest.mark.parametrize(("alone", "silent"), [(0.0, 0), (0.5, 4), (0.7, 6), (1.0, 8)])
def test_the_share_of_steps_without_the_signal(alone, silent):
    settings = ForceReplay("x", "si", 9, alone=alone)
    assert sum(settings.without_signal(step, 8) for step in range(8)) == silent
    assert not settings.without_signal(7, 8) or alone == 1.0
