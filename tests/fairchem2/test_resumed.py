"""Runs that are interrupted, gone on with, of several ranks, or meant for another folder."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import ase.io
import pytest
import torch

from fairchem_gdeq.fairchem2.interruption import INTERRUPTED
from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.running import (
    assert_equal_up_to_rounding,
    command,
    comparable,
    fairchem,
    ranks_of,
    shown_in,
)


def test_two_ranks_score_every_structure_once(inputs, trained, tmp_path):
    """Of a split that fairchem packs into fewer batches than there are ranks."""
    code, out, err = ranks_of(2, inputs, tmp_path, "--mode", "train", "epochs=1")
    assert code == 0, err[-3000:]
    assert len(re.findall(r"│ *unrelaxed X_0 *│", out)) == 1
    assert "base on test, 1 of 2 processes" in err
    one, two = (
        json.loads((r / "gdeq/results/test.json").read_text()) for r in (trained[0], tmp_path)
    )
    assert len(two["records"]["tuned"]) == 3
    assert shown_in(tmp_path / "gdeq" / "results") == [0, 1, 2]
    starts = [run["records"]["unrelaxed X_0"] for run in (one, two)]
    for mine, theirs in zip(*starts, strict=True):
        assert mine["sid"] == theirs["sid"]
        assert mine["delta_q"] == pytest.approx(theirs["delta_q"], rel=1e-5)


@pytest.mark.slow
def test_rows_of_one_name_are_structures_of_their_own(tmp_path):
    """Of other sizes, too: trained by two ranks, scored, predicted, and gone on with by one."""
    sids = {
        "train": ["a", "a", "a", "b", "b", "c", "a", "a"],
        "val": ["v"] * 3,
        "test": ["t", "u", "t"],
    }
    for seed, (split, names) in enumerate(sids.items()):
        small.write_is2rs(tmp_path / split, small.silicon(len(names), seed), sids=names)
    small.write_frames(tmp_path / "train_frames", small.silicon(4, 3))
    small.write_frames(tmp_path / "val_frames", small.silicon(4, 4))
    small.checkpoint(tmp_path / "esen.pt")
    # Loose, so that a random potential's equilibria and adjoints count.
    signal = "runner.train_eval_unit.signal."
    loose = [signal + "fmax=0.5", signal + "adjoint.tol=0.5", signal + "adjoint.damping=0.0"]
    run, warm = tmp_path / "run", ["eval_max_atoms=9", "alpha_lr=1e-4", *loose]
    checkpoint = run / "gdeq" / "checkpoints" / "final"
    code, _, err = ranks_of(2, tmp_path, run, "--mode", "train", *warm)
    assert code == 0, err[-3000:]
    assert "7 rows have a name (sid) that others have too, 2 such names: a (5 rows), b (2" in err
    stored = comparable(run / "gdeq")
    assert [epoch["structures"] for epoch in stored["history"]["epochs"]] == [3, 3]
    for records in stored["records"].values():
        assert [(r["sid"], r["row"]) for r in records] == [("t", 0), ("t", 2), ("u", 1)]
        assert len({r["delta_q"] for r in records}) == 3
    files = sorted(path.name for path in checkpoint.glob("adjoints*"))
    assert files == ["adjoints.0of2.pt", "adjoints.1of2.pt"]
    parts = [torch.load(checkpoint / name, weights_only=True) for name in files]
    sizes = {row: 8 - row % 3 for row in range(8)}
    kept = {
        row: n
        for p in parts
        for row, n in zip(*(p[k].tolist() for k in ("rows", "sizes")), strict=True)
    }
    assert len(kept) > 2 and kept.items() <= sizes.items()

    code, out, err = fairchem(tmp_path, run, "--mode", "predict")
    assert code == 0, err[-3000:]
    images = ase.io.read(run / "gdeq/results/predictions/test.extxyz", ":")
    assert [(a.info["sid"], a.info["row"], len(a)) for a in images] == [
        ("t", 0, 8),
        ("t", 2, 6),
        ("u", 1, 7),
    ]
    assert "3 structures" in out and "test.npz is not written" in err
    assert not (run / "gdeq/results/predictions/test.npz").exists()

    steps = stored["history"]["steps"]
    code, _, err = fairchem(tmp_path, run, "--mode", "train", *warm, "epochs=3")
    assert code == 0, err[-3000:]
    again = comparable(run / "gdeq")["history"]["steps"]
    assert again[: len(steps)] == steps and len(again) > len(steps)
    assert all(0 < step["train/alpha"] < 0.06 for step in again)
    (path,) = checkpoint.glob("adjoints*")
    rows = torch.load(path, weights_only=True)["rows"].tolist()
    assert path.name == "adjoints.0of1.pt" and kept.keys() <= set(rows)


@pytest.mark.parametrize(
    ("how", "after"),
    [
        pytest.param(signal.SIGINT, 4, marks=pytest.mark.slow),
        (signal.SIGKILL, 4),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),  # the optimizer has no state yet
    ],
)
def test_interrupted_run_ends_like_an_uninterrupted_one(inputs, trained, tmp_path, how, after):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = ("--mode", "train", "checkpoint_minutes=0")  # before every step
    process = subprocess.Popen(
        command(inputs, tmp_path, *arguments),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / "gdeq" / "checkpoints"
    deadline = time.time() + 300
    while not (checkpoints / f"step_{after}" / ".metadata").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    # `train && predict` must not go on.
    assert process.wait(60) == {signal.SIGINT: INTERRUPTED, signal.SIGKILL: -9}[how]
    assert not (tmp_path / "gdeq" / "results" / "test.json").exists()
    code, _, err = fairchem(inputs, tmp_path, *arguments)
    assert code == 0, err[-3000:]
    assert "going on from the checkpoint" in err
    assert_equal_up_to_rounding(comparable(tmp_path / "gdeq"), comparable(trained[0] / "gdeq"))
    ends = [
        run / "gdeq" / "checkpoints" / "final" / "adjoints.0of1.pt"
        for run in (tmp_path, trained[0])
    ]
    resumed, straight = (torch.load(path, weights_only=True) for path in ends)
    for key, value in straight.items():
        assert torch.equal(resumed[key].sort(0).values, value.sort(0).values), key


STOPPED = """
import os
import signal
from torch.distributed.checkpoint import FileSystemWriter

def stopped(self, plan, planner):
    os.kill(os.getpid(), signal.SIGTERM)

FileSystemWriter.write_data = stopped
from fairchem.core._cli import main
main()
"""


@pytest.mark.slow
def test_a_signal_while_torch_writes_a_checkpoint_is_an_interruption(inputs, tmp_path):
    """Torch holds back the exit of fairchem's handler, which has taken away its ranks."""
    typed = command(inputs, tmp_path, "--mode", "train")[1:]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *typed], capture_output=True, text=True, check=False
    )
    assert "Signal SIGTERM received" in done.stderr, done.stderr[-3000:]
    assert done.returncode == INTERRUPTED, done.stderr[-3000:]
    assert "make room" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_ranks_that_are_interrupted_twice_go_on_and_end_the_same(inputs, tmp_path):
    """Both get both signals, and one of them alone says where the run goes on."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = ("--mode", "train", "checkpoint_minutes=0", "job.scheduler.ranks_per_node=2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = subprocess.run(
        command(inputs, whole, *arguments), env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    process = subprocess.Popen(
        command(inputs, cut, *arguments), env=environment, stderr=subprocess.PIPE, text=True
    )
    checkpoints = cut / "gdeq" / "checkpoints"
    deadline = time.time() + 300
    while not (checkpoints / "step_1" / ".metadata").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "FileExistsError" not in said, said[-3000:]
    (link,) = [path for path in cut.rglob("*") if path.is_symlink()]
    assert link.resolve().parent == checkpoints and (link / ".metadata").is_file()
    done = subprocess.run(
        command(inputs, cut, *arguments), env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_up_to_rounding(comparable(cut / "gdeq"), comparable(whole / "gdeq"))


@pytest.mark.slow
def test_a_longer_run_of_other_ranks_is_where_it_was(inputs, tmp_path):
    """In its epoch, in its schedule, and past the phase of forces alone, which it has had."""
    arguments = ("--mode", "train", "checkpoint_minutes=0", "forces.alone=0.5")
    code, _, err = fairchem(inputs, tmp_path, *arguments)
    assert code == 0, err[-3000:]
    checkpoints = tmp_path / "gdeq" / "checkpoints"
    lines = (checkpoints / "history.jsonl").read_text().splitlines()
    n = len(lines) // 2
    assert ["train/structures" in json.loads(line) for line in lines] == [False] * n + [True] * n
    shutil.rmtree(checkpoints / "final")  # the one before is in the middle of an epoch
    (tmp_path / "gdeq" / "results" / "test.json").unlink()
    code, _, err = ranks_of(2, inputs, tmp_path, *arguments, "epochs=4")
    assert code == 0, err[-3000:]
    half = n // 2
    done = (n - 1) * half // n
    assert f"setting sampler state to 1, {done}" in err
    assert "job.ranks: 1 there, 2 now" in err and "max_epochs: 2 there, 4 now" in err
    steps = [json.loads(line) for line in (checkpoints / "history.jsonl").read_text().splitlines()]
    new = steps[2 * n - 1 :]
    assert len(new) == 3 * half - done and all("train/structures" in step for step in new)
    assert new[0]["train/epoch"] == pytest.approx(1 + done / half)
    # Four epochs end as two did; a third has three eighths of them behind it, as the schedule has.
    rates = [step["train/lr"] for step in steps]
    assert rates[-1] == pytest.approx(json.loads(lines[-1])["train/lr"])
    assert rates[2 * n - 1] == pytest.approx(json.loads(lines[done + half])["train/lr"])


def test_another_run_is_not_mixed_into_the_folder(inputs, trained):
    """Its learning rate, step and base would be, in one table."""
    results = trained[0] / "gdeq" / "results" / "test.json"
    before = results.read_bytes()
    other = ["lr=3e-3", "alpha=0.2", "job.seed=7"]
    code, _, err = fairchem(inputs, trained[0], "--mode", "train", *other, base="adapt")
    assert code != 0 and results.read_bytes() == before
    said = err[err.rindex("holds a run with other settings") :]
    for key, was, now in (
        ("optimizer_fn.lr", "0.0004", "0.003"),
        ("is2rs.alpha", "0.05", "0.2"),
        ("job.seed", "0", "7"),
        ("model.path", "esen.pt'", "adapt.pt'"),
    ):
        line = next(line for line in said.splitlines() if f"{key}:" in line)
        assert f"{was} there" in line and f"{now} now" in line
    assert "job.timestamp_id=NAME" in said
    code, _, err = fairchem(
        inputs, trained[0], "--mode", "train"
    )  # the same run may be started again
    assert code == 0, err[-3000:]


def test_a_checkpoint_from_before_the_history_file_is_gone_on_from(inputs, trained, tmp_path):
    """Version 0.1's first ones held all steps, and adjoints by name."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq")
    checkpoints = tmp_path / "gdeq" / "checkpoints"
    lines = (checkpoints / "history.jsonl").read_text().splitlines()
    (checkpoints / "history.jsonl").unlink()
    path = checkpoints / "final" / "gdeq_state.pt"
    state = torch.load(path, weights_only=True)
    known = {"history", "alpha", "alpha_optimizer", "decoder", "fresh", "length", "diverging"}
    assert set(state) == known
    for key in ("fresh", "length", "diverging"):
        del state[key]
    (checkpoints / "final" / "checksums.json").unlink()
    state["history"]["steps"] = [json.loads(line) for line in lines]
    state["adjoints"] = {"row0": torch.ones(8, 3)}
    torch.save(state, path)
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    before, after = (comparable(run / "gdeq")["history"] for run in (trained[0], tmp_path))
    assert after["steps"][: len(lines)] == before["steps"] and len(after["epochs"]) == 3
    assert len(after["steps"]) == 3 * len(lines) / 2
    ended, longer = (steps[-1]["train/lr"] for steps in (before["steps"], after["steps"][:-1]))
    assert after["steps"][len(lines)]["train/lr"] > 2 * ended and longer > ended


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_and_the_run_goes_on(inputs, trained, tmp_path):
    """No file can be as large as a checkpoint, until somebody makes room."""
    typed = command(inputs, tmp_path, "--mode", "train")
    least = (inputs / "esen.pt").stat().st_size  # smaller than weights, averages and moments
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, least))

    done = subprocess.run(
        typed, capture_output=True, text=True, env=environment, preexec_fn=limit, check=False
    )
    last = [line for line in done.stderr.splitlines() if line.strip()][-1].removeprefix("[rank0]: ")
    assert done.returncode != 0 and last.startswith(f"fairchem: {tmp_path / 'gdeq'}"), last
    assert "could not be written ([Errno" in last and "start the same command again" in last
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train")
    assert code == 0, err[-3000:]
    assert_equal_up_to_rounding(comparable(tmp_path / "gdeq"), comparable(trained[0] / "gdeq"))


@pytest.mark.slow
def test_a_second_process_in_a_run_s_folder_is_refused(inputs, tmp_path):
    """While the first goes on, and ends."""
    typed = command(inputs, tmp_path, "--mode", "train")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        typed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not list(tmp_path.glob("gdeq/.train.holder.json")):
        assert first.poll() is None, first.stderr.read()[-3000:]
        time.sleep(0.1)
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train")
    assert code != 0 and f"is in use by process {first.pid} on" in err.splitlines()[-1]
    assert first.wait(300) == 0, first.stderr.read()[-3000:]
    assert (tmp_path / "gdeq" / "results" / "test.json").is_file()
