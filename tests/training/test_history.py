"""What a run remembers of its steps and epochs, and what a resume finds of it."""

import json
import math

import pytest

from fairchem_gdeq.training.history import History


def test_history_keeps_one_entry_an_epoch_and_finds_the_best():
    history = History()
    for epoch, value in ((1, 3.0), (2, 2.0), (3, float("nan")), (2, 2.5), (4, 2.5)):
        history.add_epoch(epoch, {"delta_q_mean": value})
    assert [e["epoch"] for e in history.epochs] == [1, 3, 2, 4]
    assert history.best == {"epoch": 2, "delta_q_mean": 2.5}
    other = History()
    other.load(json.loads(json.dumps(history.state())))
    assert other.best == history.best
    assert History().best is None


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


@pytest.mark.parametrize(("rest", "kept"), [("", [0, 1]), ('\n{"train/step": 3}\n', [0, 1, 3])])
def test_a_line_cut_short_does_not_stop_a_resume(tmp_path, caplog, rest, kept):
    """Neither at the end of what is kept, nor in the midst of it."""
    whole = '{"train/step": 0}\n{"train/step": 1}\n'
    (tmp_path / "history.jsonl").write_text(whole + '{"train/step": 2, "train/lo' + rest)
    history = History()
    history.open(tmp_path, 5)
    assert [step["train/step"] for step in history.steps] == kept
    assert "history.jsonl: a line that was not written to its end is left out" in caplog.text
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
