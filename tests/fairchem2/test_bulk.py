"""Bulk evaluation of real models: in flight as alone, journals, and the files made from them."""

import dataclasses
from contextlib import contextmanager
from functools import partial

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from torch.utils.data import DataLoader
from tqdm import tqdm

from fairchem_gdeq.batching.bulk import Bulk
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.fingerprint import fingerprint
from fairchem_gdeq.evaluation.predictions import (
    Journal,
    each_row_once,
    relax_all,
    start_of,
    write,
)
from fairchem_gdeq.evaluation.scoring import BASE, EvaluatedModel, Kept, Scoring, Split
from fairchem_gdeq.fairchem2.fields import HydraForceField, force_task
from fairchem_gdeq.fairchem2.loaders import atom_budget, row_count, rows_of
from fairchem_gdeq.fairchem2.task import IS2RS, Relaxer
from fairchem_gdeq.testing.fairchem2 import backbones, small
from tests.fairchem2.test_structures import FAMILIES, boxed, slab

TASK = IS2RS(alpha=0.05, relaxer=Relaxer(horizon=3, fmax=0.01, max_steps=15))


def rows(structures, double=True):
    return [small.batch([a], double) for a in structures]


def named(structures, double=True):
    """Rows 0, 1, ... called s0, s1, ..."""
    out = rows(structures, double)
    for k, row in enumerate(out):
        row.sid, row.row = [f"s{k}"], torch.tensor([k])
    return out


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("live", [False, True])
def test_joined_fields_have_the_forces_of_their_structures(name, live):
    structures = [slab((True, True, True)), small.silicon(1)[0], boxed(molecule("H2O"))]
    model = backbones.model(name, double=False)
    fields, places = [], []
    for a in structures:
        data = small.batch([a], double=False)
        field = HydraForceField.frozen(model, backbones.tasks(name), data)
        fields.append(field.unfreeze() if live else field)
        places.append(data.pos + (0.02 if live else 0.0))
    expected = torch.cat([f(x) for f, x in zip(fields, places, strict=True)])
    joined = fields[0].join(fields[1:])
    torch.testing.assert_close(joined(torch.cat(places)), expected, rtol=1e-3, atol=2e-5)
    back = joined.select(torch.tensor([False, True, False]))
    torch.testing.assert_close(back(places[1]), fields[1](places[1]), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fingerprint_is_not_changed_by_evaluations(name):
    """Models keep this and that of their last batch, by which a journal would not be found again."""
    model, tasks = backbones.model(name, double=False), backbones.tasks(name)
    before = fingerprint(model, tasks)
    for a in (slab((True, True, True)), small.silicon(1)[0]):
        data = small.batch([a], double=False)
        HydraForceField.unfrozen(model, tasks, data)(data.pos)
    assert fingerprint(model, tasks) == before
    assert fingerprint(backbones.model(name, double=False), backbones.tasks(name)) == before


@pytest.mark.parametrize("kind", ["esen", "adapt"])
@pytest.mark.parametrize("budget", [1, 17])
def test_records_are_those_of_each_structure_alone(kind, budget):
    """Exactly as many force evaluations; ``IS2RS.relax`` knows nothing of streams."""
    model, tasks = small.model(kind), small.tasks()
    data = named(small.silicon(5, fixed=(1,)))
    bulk = Bulk(TASK, partial(HydraForceField.unfrozen, model, tasks), budget, "cpu")
    found = {r.record.sid: r for r in bulk.relax(data)}
    assert len(found) == bulk.done == 5
    for row in data:
        (expected,), positions = TASK.relax(model, tasks, row)
        mine = found[expected.sid]
        assert mine.record.evaluations == expected.evaluations
        assert mine.record.converged == expected.converged
        assert mine.record.delta_q == pytest.approx(expected.delta_q, abs=1e-7)
        torch.testing.assert_close(mine.outcome.positions, positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(mine.to_ase().positions, positions.numpy(), atol=1e-8)
    assert bulk.evaluations == sum(r.record.evaluations for r in found.values())


def test_loader_gives_rows_and_budget():
    class Sampler:
        max_atoms = 20

        def __iter__(self):
            return iter([[0, 1], [2]])

    data = named(small.silicon(3))
    loader = DataLoader(data, batch_sampler=Sampler(), collate_fn=collate)
    assert [row.sid for row in rows_of(loader)] == [["s0"], ["s1"], ["s2"]]
    for row, original in zip(rows_of(loader), data, strict=True):
        assert torch.equal(row.pos, original.pos) and start_of(row) == start_of(original)
    assert row_count(loader) == 3 and atom_budget(loader) == 20
    del Sampler.max_atoms
    with pytest.raises(ValueError, match="max_atoms"):
        atom_budget(loader)


def everything(folder, data, model, task=TASK, stop=None):
    """Predict ``data`` through a journal in ``folder``; ``stop`` interrupts after so many."""
    bulk = Bulk(task, partial(HydraForceField.unfrozen, model, small.tasks()), 17, "cpu")
    journal = Journal(folder, "test", fingerprint(model, task), 0)
    if stop is not None:
        show = bulk.show

        def interrupt(bar):
            show(bar)
            if bulk.done == stop:
                raise KeyboardInterrupt

        bulk.show = interrupt
    with tqdm(disable=True) as bar:
        return relax_all(journal, data, bulk, bar), bulk, journal


def test_interrupted_prediction_goes_on_and_ends_the_same(tmp_path):
    data, model = named(small.silicon(5)), small.model("esen")
    whole, bulk, _ = everything(tmp_path / "whole", data, model)
    write(tmp_path / "whole", "test", each_row_once(whole))
    assert bulk.done == 5
    with pytest.raises(KeyboardInterrupt):
        everything(tmp_path / "parts", data, model, stop=2)
    (path,) = (tmp_path / "parts").glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"start": "cut sho')  # as a crash in the middle of a line would leave it
    images, bulk, journal = everything(tmp_path / "parts", data, model)
    assert bulk.done == 3, "finished ones were relaxed again"
    assert len(journal.read()) == 5
    write(tmp_path / "parts", "test", each_row_once(images))
    journal.remove()
    names = sorted(p.name for p in (tmp_path / "parts").iterdir())
    assert names == ["test.extxyz", "test.npz"]
    one, other = (np.load(tmp_path / k / "test.npz") for k in ("whole", "parts"))
    assert one["ids"].tolist() == other["ids"].tolist() == [f"s{k}" for k in range(5)]
    assert one["chunk_idx"].tolist() == other["chunk_idx"].tolist()
    np.testing.assert_allclose(one["pos"], other["pos"], atol=1e-8)
    one, other = (ase.io.read(tmp_path / k / "test.extxyz", ":") for k in ("whole", "parts"))
    for a, b in zip(one, other, strict=True):
        assert a.info["evaluations"] == b.info["evaluations"] and a.info["sid"] == b.info["sid"]


def test_journal_of_other_weights_settings_or_starts_is_not_taken_up(tmp_path):
    data, model = named(small.silicon(2)), small.model("esen")
    everything(tmp_path, data, model)
    assert everything(tmp_path, data, model)[1].done == 0
    assert everything(tmp_path, data, small.model("esen", seed=1))[1].done == 2
    other = dataclasses.replace(TASK, relaxer=Relaxer(horizon=1, fmax=0.01, max_steps=15))
    assert everything(tmp_path, data, model, other)[1].done == 2
    data[1].pos = data[1].pos + 0.01
    assert everything(tmp_path, data, model)[1].done == 1


@contextmanager
def no_memory_for_s1(monkeypatch):
    """Any pack with that structure fails, also where it is alone."""
    forward = HydraForceField.__call__

    def poor(self, positions):
        if "s1" in self.batch.sid:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, positions)

    with monkeypatch.context() as patch:
        patch.setattr(HydraForceField, "__call__", poor)
        yield


def test_a_structure_without_enough_memory_is_reported_and_tried_again(tmp_path, monkeypatch):
    data, model = named(small.silicon(3)), small.model("esen")
    with no_memory_for_s1(monkeypatch):
        images, bulk, _ = everything(tmp_path, data, model)
    assert (bulk.done, bulk.failed) == (3, 1)
    failed = {a.info["sid"]: a.info["failed"] for a in images}
    assert failed == {"s0": False, "s1": True, "s2": False}
    np.testing.assert_allclose(
        next(a for a in images if a.info["failed"]).positions, data[1].pos.numpy()
    )
    images, bulk, _ = everything(tmp_path, data, model)
    assert (bulk.done, bulk.failed) == (1, 0) and not any(a.info["failed"] for a in images)


def test_an_interrupted_prediction_in_other_units_is_not_gone_on_with(tmp_path):
    """The same weights, and a normalizer of another scale: every structure is relaxed anew."""
    data, model = named(small.silicon(3)), small.model("esen")
    units = [small.tasks(), small.tasks()]
    force_task(units[1]).normalizer.rmsd.mul_(2.0)

    def predict(tasks, folder, last=3):
        def rows():
            yield from data[:last]
            if last < 3:
                raise KeyboardInterrupt

        split = Split("test", rows, 3, 9, torch.device("cpu"))

        def field_of(found, row):
            return HydraForceField.unfrozen(found, tasks, row)

        scoring = Scoring(split, field_of, lambda found: tasks)
        return scoring.predict(EvaluatedModel("base", model, TASK), tmp_path / folder)

    with pytest.raises(KeyboardInterrupt):
        predict(units[0], "parts", last=2)
    assert list((tmp_path / "parts").glob("*.jsonl"))
    found, whole = predict(units[1], "parts"), predict(units[1], "whole")
    for mine, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(mine.positions, other.positions)


EVERY = {"s0", "s1", "s2"}


@pytest.fixture
def once(tmp_path, monkeypatch):
    """Scores the base, kept in a folder, and says how many structures were evaluated for it."""
    evaluated, forward = [], HydraForceField.__call__

    def counting(field, positions):
        evaluated.extend(field.batch.sid)
        return forward(field, positions)

    monkeypatch.setattr(HydraForceField, "__call__", counting)

    def score(data, model, task=TASK, kept=tmp_path / "kept", name=BASE):
        def field_of(found, row):
            return HydraForceField.unfrozen(found, small.tasks(), row)

        split = Split("val", lambda: iter(data), len(data), 9, torch.device("cpu"))
        known = kept and Kept(kept, fingerprint(model))
        scoring = Scoring(split, field_of, lambda found: small.tasks(), known)
        evaluated.clear()
        ends = {}
        records = scoring.relaxed(EvaluatedModel(name, model, task), ends=ends)
        return records, ends, set(evaluated)

    return score


def targeted(count=3, shift=0.02):
    data = named(small.silicon(count))
    for row in data:
        row.pos_relaxed = row.pos + shift
    return data


def test_the_base_is_relaxed_once(once):
    """The second run evaluates nothing, and gets what one without a folder gets, to the digit."""
    data, model = targeted(), small.model("esen")
    plain, places, _ = once(data, model, kept=None)
    first, _, evaluated = once(data, model)
    assert evaluated == EVERY
    second, ends, evaluated = once(data, model)
    assert evaluated == set() and first == second == plain
    assert ends.keys() == places.keys()
    for row, place in places.items():
        torch.testing.assert_close(ends[row], place, rtol=0, atol=0)


def test_another_target_is_scored_anew(once):
    """Where a structure ends does not depend on where it should have."""
    model = small.model("esen")
    once(targeted(), model)
    found, _, evaluated = once(targeted(shift=0.5), model)
    assert evaluated == set() and found == once(targeted(shift=0.5), model, kept=None)[0]


def test_what_decides_where_the_base_ends_is_not_taken_from_before(once, monkeypatch):
    data, model = targeted(), small.model("esen")
    once(data, model)
    assert once(data, model, name="tuned")[2] == EVERY
    other = dataclasses.replace(TASK, relaxer=dataclasses.replace(TASK.relaxer, fmax=0.02))
    assert once(data, model, task=other)[2] == EVERY
    moved = targeted()
    moved[1].pos = moved[1].pos + 0.01
    assert once(moved, model)[2] == EVERY
    assert once(data[:2], model)[2] == {"s0", "s1"}, "in other company, so not to the digit"
    assert once(data, model)[2] == set()
    with monkeypatch.context() as patch:
        patch.setattr("fairchem_gdeq.evaluation.scoring.code", lambda: "another version")
        assert once(data, model)[2] == EVERY
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert once(data, model)[2] == EVERY


def test_a_damaged_file_is_made_anew(once, tmp_path, caplog):
    data, model = targeted(), small.model("esen")
    first, _, _ = once(data, model)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-20], whole[: len(whole) // 2], b"\0" * len(whole)):
        file.write_bytes(damaged)
        caplog.clear()
        again, _, evaluated = once(data, model)
        assert evaluated == EVERY and again == first
        assert f"{file} cannot be read" in caplog.text
        assert once(data, model)[2] == set()


def test_one_that_memory_did_not_suffice_for_is_tried_again(once, monkeypatch, caplog):
    data, model = targeted(), small.model("esen")
    with no_memory_for_s1(monkeypatch):
        first, _, _ = once(data, model)
    assert [r.cause == "out_of_memory" for r in first] == [False, True, False]
    assert "base on val: memory did not suffice for 1 structures" in caplog.text
    second, _, evaluated = once(data, model)
    assert evaluated == EVERY and not any(r.diverged for r in second)
