"""Force training beside the signal in fairchem 1: which frames, which labels, and what is refused."""

import copy
import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixCartesian, FixedPlane
from ase.db import connect

from fairchem_gdeq.fairchem1.force_frames import open_frames
from fairchem_gdeq.fairchem1.replay import ForceReplay
from fairchem_gdeq.frozen.forward import evaluating
from fairchem_gdeq.relax import make_signal
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.frames import write_frames
from fairchem_gdeq.training.steps import differentiate
from tests.fairchem1 import running


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with running.trainer_on(tmp_path_factory.mktemp("inputs")) as made:
        yield made


slabs = partial(running.slabs, first=20)


@pytest.fixture
def replay(tmp_path):
    """Settings for seven frames; in a folder of their own, since LMDB opens a file once in a process."""
    number = itertools.count()

    def make(**settings):
        folder = tmp_path / f"frames{next(number)}"
        write_frames(folder, slabs(7))
        return ForceReplay(str(folder), **{"batch_size": 3, **settings})

    return make


def opened(trainer, settings):
    return settings.open(trainer, lambda batch: trainer.field_of(trainer.base.model, batch))


def sids(batches, numbers):
    return [list(batches(number, None, None).sid) for number in numbers]


def test_every_frame_once_an_epoch_in_another_order_and_the_same_again(trainer, replay):
    batches, again = (opened(trainer, replay()).batches for _ in range(2))
    first, second = sids(batches, range(3)), sids(batches, range(3, 6))
    assert [len(batch) for batch in first] == [3, 3, 1]
    flat = [sorted(sid for batch in epoch for sid in batch) for epoch in (first, second)]
    assert flat[0] == flat[1] == [f"frame{i}" for i in range(7)]
    assert first != second
    # As a resumed run begins, in the middle of an epoch and at its last batch.
    assert sids(again, [4, 5, 6, 2, 1]) == [*second[1:], *sids(batches, [6]), first[2], first[1]]


def test_a_batch_is_as_large_as_that_of_structures(trainer, replay):
    batches = opened(trainer, replay(batch_size=None)).batches
    assert len(batches.sampler) == 4  # of 2, as optim.batch_size


def by_hand(model, frames):
    """Mean length of a free atom's error, in units of the rmsd."""
    with evaluating(model):
        predicted = model(frames.clone())["forces"]
    errors = (predicted - frames.forces / running.RMSD)[frames.fixed == 0]
    return errors.norm(dim=1).mean()


def test_labels_and_loss_are_those_of_the_files(trainer, replay):
    settings = replay(batch_size=7)
    with connect(Path(settings.src) / "data.aselmdb", type="aselmdb") as database:
        known = {row.data["sid"]: row.toatoms() for row in database.select()}
    found = opened(trainer, settings)
    frames = found.batches(0, None, None)
    parts = frames.forces.split(frames.natoms.tolist())
    for sid, forces in zip(frames.sid, parts, strict=True):
        np.testing.assert_allclose(forces, known[sid].get_forces(apply_constraint=False), atol=1e-6)
    assert bool((frames.fixed != 0).any())
    expected = by_hand(trainer._unwrapped_model, frames)
    assert float(found.loss(frames)) == pytest.approx(float(expected), rel=1e-4)


def test_the_coefficient_of_the_base_is_not_used(trainer, replay, monkeypatch):
    frames = opened(trainer, replay()).batches(0, None, None)
    plain = opened(trainer, replay()).loss(frames)
    weighted = [(name, how | {"coefficient": 30.0}) for name, how in trainer.loss_functions]
    monkeypatch.setattr(trainer, "loss_functions", weighted)
    torch.testing.assert_close(opened(trainer, replay()).loss(frames), plain)
    assert trainer.loss_functions is weighted


def test_the_loss_of_the_base_is_taken(trainer, replay, monkeypatch):
    """Such as the mean of a component's error, of all atoms, in place of that of a free atom's length."""
    output = trainer.output_targets["forces"] | {"train_on_free_atoms": False}
    monkeypatch.setitem(
        trainer.config, "loss_functions", [{"forces": {"fn": "mae", "coefficient": 1}}]
    )
    monkeypatch.setattr(trainer, "loss_functions", None)
    monkeypatch.setitem(trainer.output_targets, "forces", output)
    trainer.load_loss()
    found = opened(trainer, replay())
    frames, model = found.batches(0, None, None), trainer._unwrapped_model
    with evaluating(model), torch.no_grad():
        expected = (model(frames.clone())["forces"] - frames.forces / running.RMSD).abs().mean()
    assert float(found.loss(frames)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("limit", [0.3, 1e6])
def test_a_step_is_the_sum_of_both_gradients(trainer, replay, monkeypatch, limit):
    """By the formula, with the force gradient of fairchem's plain forward pass."""
    model = copy.deepcopy(trainer._unwrapped_model)
    monkeypatch.setattr(trainer, "model", model)
    parameters = list(model.parameters())
    monkeypatch.setattr(trainer, "optimizer", torch.optim.SGD(parameters, lr=1.0))
    monkeypatch.setattr(trainer, "clip_grad_norm", None)
    monkeypatch.setattr(trainer, "ema", None)
    weight = 3.0
    settings = replay(lambda_forces=weight, limit=limit)
    monkeypatch.setattr(trainer, "replay", opened(trainer, settings), raising=False)
    batch = next(iter(trainer.train_loader))

    def gradient():
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        model.zero_grad()
        return torch.cat([g.flatten() for g in found])

    model.eval()
    trainer.differentiate(batch)
    signal = gradient()
    (weight * by_hand(model, trainer.replay.batches(0, None, None))).backward()
    forces = gradient()
    share = min(1.0, limit * float(forces.norm()) / float(signal.norm()))
    assert (share == 1.0) == (limit == 1e6)
    before = torch.cat([p.detach().flatten().clone() for p in parameters])
    monkeypatch.setattr(trainer, "step", 1)
    model.train()
    log = trainer._forward(batch)
    moved = before - torch.cat([p.detach().flatten() for p in parameters])
    expected = forces + share * signal
    assert float((moved - expected).norm()) < 1e-3 * float(expected.norm())
    assert float((moved - forces).norm()) > 0.1 * float(forces.norm())
    assert log["train/signal_share"] == pytest.approx(share, rel=1e-3)
    loss = by_hand(model, trainer.replay.batches(0, None, None))
    assert log["train/forces_loss"] > 0 and float(loss) != log["train/forces_loss"]


def test_labels_of_the_base_stay_its_own(trainer, monkeypatch):
    """On the way from X_0 to X_K, and unmoved by what the model learns."""
    model = copy.deepcopy(trainer._unwrapped_model)
    monkeypatch.setattr(trainer, "model", model)
    found = opened(trainer, ForceReplay("base"))
    batch = next(iter(trainer.train_loader))
    field = trainer.field_of(trainer.base.model, batch)
    operator = trainer.is2rs.operator_of(field, batch)
    signal = make_signal("truncated_bptt", horizon=2, max_unroll=2)
    report = differentiate(signal, operator, batch)
    frames = found.batches(3, batch, report)
    way = report.handoff - batch.pos
    for i in range(2):
        own = batch.batch == i
        share = ((frames.pos - batch.pos)[own] * way[own]).sum() / (way[own] ** 2).sum()
        assert 0 < float(share) < 1
        torch.testing.assert_close(frames.pos[own], (batch.pos + share * way)[own])
    assert torch.equal(frames.fixed, batch.fixed)
    torch.testing.assert_close(frames.forces, field(frames.pos).detach())
    near = float(found.loss(frames).detach())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    torch.testing.assert_close(found.batches(3, batch, report).forces, frames.forces)
    assert near < 1e-5 and float(found.loss(frames)) > 1e-3


# ---- what is refused ---------------------------------------------------------------------------


def test_frames_without_forces_are_named(tmp_path):
    write_frames(tmp_path / "frames", slabs(3))
    with connect(tmp_path / "frames" / "data.aselmdb", type="aselmdb") as database:
        database.write(slabs(1)[0], data={"sid": "bare"})
    np.savez(tmp_path / "frames" / "metadata.npz", natoms=np.array([13] * 4))
    with pytest.raises(
        ValueError, match=r"1 of 4 have no forces.*such as bare\. Expected forces in"
    ):
        open_frames(str(tmp_path / "frames"))


def test_forces_that_are_not_finite_are_named(tmp_path):
    write_frames(tmp_path / "frames", slabs(2), spoil=1)
    with pytest.raises(ValueError, match=r"1 of 2 have no forces, or some that are not finite"):
        open_frames(str(tmp_path / "frames"))


def test_constraints_of_frames_are_fixed_atoms_or_named(tmp_path):
    """fairchem knows FixAtoms alone; atoms that are held in all directions are fixed for it too."""
    frames = slabs(2)
    frames[0].set_constraint(FixCartesian([1, 4]))
    frames[1].set_constraint(FixAtoms([2]))
    write_frames(tmp_path / "held", frames)
    found = open_frames(str(tmp_path / "held"))
    fixed = {row.sid: row.fixed.nonzero().flatten().tolist() for row in found}
    assert fixed == {"frame0": [1, 4], "frame1": [2]}
    frames[1].set_constraint(FixedPlane([0], (0, 0, 1)))
    write_frames(tmp_path / "plane", frames)
    with pytest.raises(ValueError, match=r"frames .*plane, structure frame1: it has a FixedPlane"):
        open_frames(str(tmp_path / "plane"))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no such file.*--task\.forces\.src=FOLDER"
    ):
        open_frames(str(tmp_path / "nowhere"))


def test_a_base_without_a_loss_of_forces(trainer, replay, monkeypatch):
    monkeypatch.setattr(trainer, "loss_functions", [("energy", {"fn": None, "coefficient": 1})])
    with pytest.raises(ValueError, match=r"no loss of forces, only of energy"):
        opened(trainer, replay())


# ---- S2EF LMDBs --------------------------------------------------------------------------------


def write_s2ef(path, spoil=None):
    path.mkdir()
    rows, rng = [], np.random.default_rng(0)
    for i in range(3):
        row = pyg.fields(pyg.slab(i), 7)  # frames of one system have one name
        del row["pos_relaxed"]
        row |= {"y": 0.5, "fid": i}
        row["force"] = torch.tensor(rng.normal(size=row["pos"].shape), dtype=torch.float32)
        rows.append(row)
    if spoil is not None:
        rows[1] = spoil(rows[1])
    pyg.write(path / "data.lmdb", [pyg.pyg1(row) for row in rows])
    return rows


def test_frames_of_an_s2ef_lmdb(trainer, tmp_path):
    rows = write_s2ef(tmp_path / "frames")
    found = opened(trainer, ForceReplay(str(tmp_path / "frames"), format="lmdb", batch_size=3))
    frames = found.batches(0, None, None)
    parts = frames.forces.split(frames.natoms.tolist())
    for forces, pos in zip(parts, frames.pos.split(frames.natoms.tolist()), strict=True):
        (row,) = [
            row
            for row in rows
            if row["force"].shape == forces.shape and torch.allclose(row["force"], forces)
        ]
        assert row["pos"].shape == pos.shape
    expected = by_hand(trainer._unwrapped_model, frames)
    assert float(found.loss(frames)) == pytest.approx(float(expected), rel=1e-4)


def test_an_lmdb_of_no_forces_or_of_other_shape_is_named(tmp_path):
    write_s2ef(tmp_path / "a", lambda row: {k: v for k, v in row.items() if k != "force"})
    with pytest.raises(ValueError, match=r"1 of 3 have no forces"):
        open_frames(str(tmp_path / "a"), "lmdb")
    write_s2ef(tmp_path / "b", lambda row: row | {"force": row["force"][:-1]})
    with pytest.raises(ValueError, match=r"key 1, structure 7: force has shape \(12, 3\)"):
        open_frames(str(tmp_path / "b"), "lmdb")
