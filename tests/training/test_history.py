"""What a run remembers of its steps and epochs, and what a resume finds of it."""

import json
import math

import numpy as np
import pytest

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End
from fairchem_gdeq.training.history import History


def ends(values):
    return [End(row, value, False) for row, value in enumerate(values)]


BEFORE = np.linspace(2.0, 4.0, 12)
NEARER, FARTHER = BEFORE - 1.0, BEFORE + 1.0
MIXED = BEFORE + np.where(np.arange(12) % 2, -1.1, 1.0)  # a little nearer in the mean


def filled(keep, *epochs):
    history = History(keep)
    history.set_base({"delta_q_mean": BEFORE.mean()}, ends(BEFORE))
    for epoch, values in epochs:
        history.add_epoch(epoch, {"delta_q_mean": values.mean()}, ends(values), Basin())
    return history


def test_a_repeated_epoch_replaces_the_first():
    history = filled("better", (1, FARTHER), (2, NEARER), (3, FARTHER), (2, MIXED))
    assert [e["epoch"] for e in history.epochs] == [1, 3, 2]
    assert history.best is None  # of the two that were the second, the one that counts is no better


@pytest.mark.parametrize(
    ("keep", "found"), [("better", (None, 3)), ("lowest", (2, 3)), ("last", (2, 3))]
)
def test_which_epoch_is_kept(keep, found):
    """After two epochs, of which the second is better by chance, and after a third."""
    history = filled(keep, (1, FARTHER), (2, MIXED))
    for expected in found:
        epoch = None if history.best is None else history.best["epoch"]
        assert epoch == expected
        assert ("reported: the base" in history.outcome) == (expected is None)
        history.add_epoch(3, {"delta_q_mean": NEARER.mean()}, ends(NEARER), Basin())


@pytest.mark.parametrize("keep", ["better", "lowest"])
def test_an_epoch_with_which_many_diverge_is_not_chosen(keep, caplog):
    """What is left of them may well be nearer."""
    history = filled(keep, (1, MIXED - 0.5))
    history.base["diverged"] = 0.1
    for share, expected in ((0.14, 2), (0.2, 1)):
        scores = {"delta_q_mean": NEARER.mean(), "diverged": share}
        history.add_epoch(2, scores, ends(NEARER), Basin())
        assert history.best["epoch"] == expected
    assert "epoch 2: 20% of the validation structures diverged, so it is not chosen" in caplog.text


def test_last_is_the_last_however_bad():
    assert filled("last", (1, NEARER), (2, FARTHER)).best["epoch"] == 2
    assert filled("lowest", (1, FARTHER)).best is None


def test_a_checkpoint_brings_the_base_back():
    history = filled("better", (1, FARTHER))
    other = History()
    assert not other.knows_base and other.best is None
    other.load(json.loads(json.dumps(history.state())))
    assert other.knows_base and other.base == history.base
    other.add_epoch(2, {"delta_q_mean": NEARER.mean()}, ends(NEARER), Basin())
    assert other.best["epoch"] == 2
    old = History()
    old.load({"epochs": [{"epoch": 1, "delta_q_mean": 2.0}], "base": None})  # of version 0.1
    assert not old.knows_base and old.best is None


def test_few_validation_structures_are_said(caplog):
    History().set_base({}, ends(BEFORE[:5]))
    assert "5 validation structures" in caplog.text and "keep=lowest" in caplog.text


def test_an_unknown_way_to_keep_is_refused():
    with pytest.raises(ValueError, match="unknown keep 'best': choose one of better, lowest, last"):
        History("best")


def test_steps_are_on_disk_and_cut_back_to_the_checkpoint(tmp_path):
    first = History()
    first.add_step({"loss": -1.0})
    assert first.steps == [] and first.last == {"loss": -1.0}  # there is no file yet
    first.open(tmp_path / "checkpoints", 0)
    for k in range(5):
        first.add_step({"train/step": k, "loss": float("nan") if k == 1 else 0.1 * k})
    with (tmp_path / "checkpoints" / "history.jsonl").open("a") as file:
        file.write('{"train/step": 5, "lo')  # cut short by a kill
    again = History()
    again.open(tmp_path / "checkpoints", 3)
    assert [s["train/step"] for s in again.steps] == [0, 1, 2] and again.last == {
        "train/step": 2,
        "loss": 0.2,
    }
    assert math.isnan(again.steps[1]["loss"])
    again.add_step({"train/step": 3, "loss": 7.0})
    assert again.steps[3] == {"train/step": 3, "loss": 7.0} and len(again.steps) == 4


def test_another_run_in_the_folder_begins_anew(tmp_path):
    for _ in range(2):
        history = History()
        history.open(tmp_path, 0)
        assert history.steps == [] and history.last is None
        history.add_step({"train/step": 0})


def test_a_file_with_fewer_steps_than_the_checkpoint_is_said(tmp_path, caplog):
    history = History()
    history.open(tmp_path, 4)
    assert "has 0 steps, and the checkpoint is of 4 steps" in caplog.text
    history.add_step({"train/step": 4})
    assert history.steps == [{"train/step": 4}]


@pytest.mark.parametrize("first", [0, 1])  # fairchem 2 counts from 0, fairchem 1 from 1
def test_missing_steps_do_not_keep_later_ones(tmp_path, caplog, first):
    """The file is cut by the numbers of its steps, not by how many it has."""
    history = History()
    history.open(tmp_path, 4, first)
    for k in range(4, 10):
        history.add_step({"train/step": first + k})
    again = History()
    again.open(tmp_path, 8, first)
    assert "has 4 steps, and the checkpoint is of 8 steps" in caplog.text
    assert again.last == {"train/step": first + 7}
    again.add_step({"train/step": first + 8})
    assert [s["train/step"] - first for s in again.steps] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("rest", "kept"), [("", [0, 1]), ('\n{"train/step": 3}\n', [0, 1, 3]), ("\n5\n[]\n", [0, 1])]
)
def test_a_line_cut_short_does_not_stop_a_resume(tmp_path, caplog, rest, kept):
    """Neither at the end of what is kept, nor in the midst of it."""
    whole = '{"train/step": 0}\n{"train/step": 1}\n'
    (tmp_path / "history.jsonl").write_text(whole + '{"train/step": 2, "train/lo' + rest)
    history = History()
    history.open(tmp_path, 5)
    assert [step["train/step"] for step in history.steps] == kept
    assert "history.jsonl: line 3, which is no whole step, is left out" in caplog.text
    assert f"has {len(kept)} steps, and the checkpoint is of 5 steps" in caplog.text
    history.add_step({"train/step": 5})
    assert history.steps[-1] == {"train/step": 5}


def test_steps_of_a_checkpoint_from_before_the_file(tmp_path):
    stored = {"steps": [{"train/step": 0}, {"train/step": 1}], "epochs": [], "base": None}
    (tmp_path / "history.jsonl").write_text('{"train/step": 9}\n')
    history = History()
    history.load(stored)
    history.take_over(tmp_path, stored["steps"])
    history.add_step({"train/step": 2})
    assert history.steps == [{"train/step": 0}, {"train/step": 1}, {"train/step": 2}]


def test_what_a_checkpoint_holds_does_not_grow_with_the_steps(tmp_path):
    history = History()
    history.open(tmp_path, 0)
    sizes = []
    for k in range(200):
        history.add_step({"train/step": k})
        sizes.append(len(json.dumps(history.state())))
    assert sizes[0] == sizes[-1]
