"""From which checkpoint a run goes on, what is left of older ones, and which model is the best one."""

import json
import logging
import os
import shutil
from dataclasses import replace

import pytest

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.fairchem2.callbacks import Checkpoints
from fairchem_gdeq.fairchem2.evaluated import chosen_file
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.whole import newest_whole, remember
from tests.fairchem2.running import fairchem
from tests.records import RECORD


@pytest.fixture
def checkpoints(trained, tmp_path):
    """A run with two checkpoints, step_2 the older."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq", symlinks=True)
    folder = tmp_path / "gdeq" / "checkpoints"
    for old in folder.glob("step_*"):
        shutil.rmtree(old)
    shutil.copytree(folder / "final", folder / "step_2")
    os.replace(folder / "final", folder / "step_4")
    for name, when in (("step_2", 1000), ("step_4", 2000)):
        os.utime(folder / name, (when, when))
    return folder


def cut(file):
    """Half of it; the time of its folder stays."""
    folder = file.parent.stat()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


def spoil(file):
    """Half of it is zeros, as after a power cut; its size stays."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(bytes(size - size // 2))


def flip(file):
    """One bit of it."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, spoil])
@pytest.mark.parametrize("name", ["gdeq_state.pt", ".metadata", "__0_0.distcp", "adjoints.0of1.pt"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_taken(checkpoints, name, damage, caplog):
    assert newest_whole(checkpoints, None) == checkpoints / "step_4"
    damage(checkpoints / "step_4" / name)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(checkpoints, None) == checkpoints / "step_2"
    said = f"checkpoint {checkpoints / 'step_4'} ({name} has"
    assert said in caplog.text and "is damaged" in caplog.text
    (checkpoints / "preemption_state").symlink_to(checkpoints / "step_4")
    asked = str(checkpoints / "preemption_state")
    assert newest_whole(checkpoints, asked) == checkpoints / "step_2", "as Slurm asks for it"
    damage(checkpoints / "step_2" / name)
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole: .*step_4 .*step_2"):
        newest_whole(checkpoints, None)


def test_one_that_is_not_finished_is_passed_over(checkpoints, caplog):
    os.replace(checkpoints / "step_4", checkpoints / "step_4.partial")
    (checkpoints / "step_4.partial" / ".metadata").unlink()
    with caplog.at_level(logging.INFO):
        assert newest_whole(checkpoints, None) == checkpoints / "step_2"
    assert "step_4.partial: left by a run that was killed" in caplog.text
    for path in checkpoints.glob("step_*"):
        shutil.rmtree(path)
    assert newest_whole(checkpoints, None) is None


def test_a_run_goes_on_from_the_one_before(checkpoints, inputs):
    """Through the command: it ends well, and says which checkpoint is damaged."""
    cut(checkpoints / "step_4" / "gdeq_state.pt")
    run_dir = checkpoints.parents[1]
    code, _, err = fairchem(inputs, run_dir, "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    assert "step_4" in err and "is damaged: looking for one before it" in err
    stored = json.loads((run_dir / "gdeq" / "results" / "test.json").read_text())
    assert len(stored["history"]["epochs"]) == 3


def test_one_from_before_the_checksums_is_looked_at_as_it_is(checkpoints):
    (checkpoints / "step_4" / "checksums.json").unlink()
    assert newest_whole(checkpoints, None) == checkpoints / "step_4"
    cut(checkpoints / "step_4" / "__0_0.distcp")
    assert newest_whole(checkpoints, None) == checkpoints / "step_2"


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        pytest.param("inference_ckpt.pt", cut, "File is not a zip file", marks=pytest.mark.slow),
        ("inference_ckpt.pt", flip, "is not what was written"),
        pytest.param("gdeq_state.pt", cut, "File is not a zip file", marks=pytest.mark.slow),
        ("gdeq_state.pt", os.unlink, "no such file"),
    ],
)
def test_a_run_whose_best_model_is_gone_says_so_at_its_start(
    checkpoints, inputs, name, damage, said
):
    run_dir = checkpoints.parents[1]
    damage(run_dir / "gdeq" / "results" / "best" / name)
    steps = (checkpoints / "history.jsonl").read_text()
    code, out, err = fairchem(inputs, run_dir, "--mode", "train", "epochs=3")
    last = err.strip().splitlines()[-1]
    assert code == 1 and "results/best: expected the run's best model so far, found" in last
    assert (
        f"found {name}: " in last
        and said in last
        and f"a copy of {checkpoints / 'step_4'} in its place" in last
    )
    assert (checkpoints / "history.jsonl").read_text() == steps and "tuned" not in out


@pytest.mark.slow
def test_a_run_that_begins_with_another_ones_checkpoint_can_be_started_again(
    checkpoints, inputs, tmp_path
):
    """It has that model until an epoch is better, and goes on from its own checkpoint then."""
    run_dir = tmp_path / "new"
    typed = ["--mode", "train", "keep=better"]
    first = [*typed, "epochs=3", f"+job.runner_state_path={checkpoints / 'step_4'}"]
    for epochs in (3, 4):
        code, out, err = fairchem(inputs, run_dir, *first, f"epochs={epochs}")
        assert code == 0, err[-3000:]
        own = run_dir / "gdeq" / "checkpoints" / "final"
        assert (f"going on from the checkpoint {own}" in err) == (epochs == 4)
        assert "goes on from another one's checkpoint" in err or epochs == 4
        stored = json.loads((run_dir / "gdeq" / "results" / "test.json").read_text())
        assert [e["epoch"] for e in stored["history"]["epochs"]] == list(range(3, epochs + 1))
        assert "tuned" in stored["scores"]


def test_the_checkpoint_of_another_run_is_remembered(checkpoints, tmp_path):
    """A job that Slurm begins again is not told of it any more, and may have none of its own yet."""
    own, other = tmp_path / "own", str(checkpoints / "step_2")
    assert newest_whole(own, None) is None
    remember(own, tmp_path / "mistyped")
    assert newest_whole(own, other) == checkpoints / "step_2"
    assert newest_whole(own, None) is None
    remember(own, checkpoints / "step_2")
    assert newest_whole(own, None) == checkpoints / "step_2"
    assert newest_whole(own, str(own / "preemption_state")) == checkpoints / "step_2"
    assert newest_whole(own, str(checkpoints / "step_4")) == checkpoints / "step_4"
    remember(own, checkpoints / "step_4")
    assert newest_whole(own, None) == checkpoints / "step_4"
    shutil.copytree(checkpoints / "step_2", own / "step_3")
    assert newest_whole(own, None) == newest_whole(own, other) == own / "step_3"


def test_one_of_the_run_that_is_not_there_is_named(checkpoints, tmp_path, caplog):
    """It may have been there when the command was typed first, which then goes on."""
    assert newest_whole(checkpoints, str(checkpoints / "step_99")) == checkpoints / "step_4"
    assert "step_99: this checkpoint is not there any more" in caplog.text
    empty = tmp_path / "empty"
    with pytest.raises(ValueError, match=r"step_99: expected a checkpoint, found that it is not"):
        newest_whole(empty, str(empty / "step_99"))


def test_a_run_at_its_end_without_its_checkpoints_is_not_begun_anew(checkpoints, inputs):
    """They are large, and somebody may have removed them: the best model is all that there is."""
    for path in checkpoints.glob("step_*"):
        shutil.rmtree(path)
    best = checkpoints.parent / "results" / "best"
    kept = (checkpoints / "gdeq_settings.json").read_bytes()
    before = {path.name: path.read_bytes() for path in best.iterdir() if path.is_file()}
    for more in (
        [],
        ["lr=3e-3"],
        [f"+job.runner_state_path={checkpoints.parents[1] / 'elsewhere'}"],
    ):
        code, _, err = fairchem(inputs, checkpoints.parents[1], "--mode", "train", *more)
        assert code != 0 and "step/s" not in err
        said = err.strip().splitlines()[-1]
        assert (
            "test.json is of a training that has ended" in said and "job.timestamp_id=NAME" in said
        )
    assert {path.name: path.read_bytes() for path in best.iterdir() if path.is_file()} == before
    assert (checkpoints / "gdeq_settings.json").read_bytes() == kept


@pytest.mark.slow
@pytest.mark.parametrize("linked", ["checkpoints", "results"])
def test_a_folder_that_is_a_link_is_of_the_run(checkpoints, inputs, tmp_path, linked):
    """Scratch is elsewhere on many machines: it goes on, and its best model stays in the choice."""
    run = checkpoints.parent
    os.replace(run / linked, tmp_path / "scratch")
    (run / linked).symlink_to(tmp_path / "scratch")
    code, _, err = fairchem(inputs, run.parent, "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    assert "step_4" in err and "another one's checkpoint" not in err
    stored = json.loads((run / "results" / "test.json").read_text())
    assert [e["epoch"] for e in stored["history"]["epochs"]] == [1, 2, 3]


def test_a_model_in_the_middle_of_a_swap_is_scored(checkpoints, inputs, caplog):
    results = checkpoints.parent / "results"
    os.replace(results / "best", results / "best.old")
    assert chosen_file(None, results) == results / "best.old" / "inference_ckpt.pt"
    assert chosen_file("base", results) is None and not caplog.messages


def test_a_swap_of_the_best_model_that_a_kill_has_cut_in_two_is_undone(checkpoints, inputs):
    best = checkpoints.parent / "results" / "best"
    os.replace(best, best.with_name("best.old"))
    code, out, err = fairchem(inputs, checkpoints.parents[1], "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    assert "tuned" in out and sorted(path.name for path in best.parent.glob("best*")) == ["best"]


@pytest.mark.slow
def test_a_history_that_is_damaged_is_not_taken_for_the_checkpoint(checkpoints, inputs):
    with (checkpoints / "history.jsonl").open("a") as file:
        file.write("5\n")
    code, _, err = fairchem(inputs, checkpoints.parents[1], "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    assert "history.jsonl: line" in err and "is left out" in err


def test_the_latest_whole_ones_are_kept(tmp_path):
    """What a kill has left, and a link of an interruption, are none of them."""
    names = ("step_1", "step_2", "step_3.partial", "step_4", "step_5.old")
    for when, name in enumerate(names):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (when, when))
    (tmp_path / "preemption_state").symlink_to(tmp_path / "step_1")
    Checkpoints(0.0)._keep_the_latest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_2", "step_4"]
    os.makedirs(tmp_path / "preemption_state", exist_ok=True)  # fairchem, at the next interruption


def test_the_kept_epoch_competes_when_it_is_repeated():
    """The model of a killed run's epoch 2 is in results/best; repeated, the epoch is no better."""
    history = History("lowest")
    base = [replace(RECORD, row=k, delta_q=4.0) for k in range(20)]
    history.set_base({}, base)
    ends = {1: 4.5, 2: 3.0}
    for epoch, far in ends.items():
        history.add_epoch(
            epoch, {}, [replace(RECORD, row=k, delta_q=far) for k in range(20)], Basin()
        )
    kept = history.best
    assert kept["epoch"] == 2
    history.kept = dict(kept)
    history.add_epoch(2, {}, [replace(RECORD, row=k, delta_q=4.1) for k in range(20)], Basin())
    assert history.best == kept and history.best is not history.epochs[-1]
    history.kept = None
    assert history.best is None
