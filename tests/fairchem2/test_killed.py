"""A run that is killed again and again, at any moment, ends like one that never was."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest

from tests.fairchem2.running import assert_equal_up_to_rounding, command, comparable

pytestmark = pytest.mark.slow
KILLS = 20  # with one rank, and as many with two
EVERY_STEP = "checkpoint_minutes=0"  # so that many a kill comes while something is written


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments(ranks, inputs, tmp_path):
    """Runs follow one another, each until it has ended in spite of the kills, until these are used up."""
    typed = ["--mode", "train", EVERY_STEP, f"job.scheduler.ranks_per_node={ranks}"]
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert start(command(inputs, whole, *typed)).wait(600) == 0, said(whole)
    takes = time.monotonic() - began
    expected = comparable(whole / "gdeq")
    moments = random.Random(ranks)
    kills = runs = 0
    while kills < KILLS:
        run = tmp_path / f"run{runs}"
        runs += 1
        while True:
            process = start(command(inputs, run, *typed))
            try:
                # The first part of a process imports; what is of interest comes after it.
                left = moments.uniform(0.3, 1.1) * takes if kills < KILLS else 10 * takes
                assert process.wait(left) == 0, said(run)
                break
            except subprocess.TimeoutExpired:
                assert kills < KILLS, f"it does not end: {said(run)}"
                workers = ranks_of(process.pid)
                if ranks > 1 and kills % 2 and workers:  # one of them: the others are told to end
                    os.kill(moments.choice(workers), signal.SIGKILL)
                    assert process.wait(120) != 0
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                kills += 1
        assert_equal_up_to_rounding(comparable(run / "gdeq"), expected)


def start(typed):
    """The command as the leader of a group of processes, which says what it says into a file."""
    (folder,) = (part.split("=", 1)[1] for part in typed if part.startswith("job.run_dir="))
    os.makedirs(folder, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(f"{folder}/said.txt", "ab") as out:
        return subprocess.Popen(
            typed, env=environment, stdout=out, stderr=out, start_new_session=True
        )


def ranks_of(leader):
    """Processes that torch has started as ranks of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            (parent,) = re.findall(r"PPid:\s(\d+)", (path / "status").read_text())
            if int(parent) == leader and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def said(run):
    return (run / "said.txt").read_text()[-5000:]


def test_a_killed_prediction_has_every_structure_once(inputs, trained, tmp_path):
    """Structures end where they do uninterrupted, but for the last digits of packs in other company."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq")
    typed = command(inputs, tmp_path, "--mode", "predict", "split=train", "eval_max_atoms=17")
    began = time.monotonic()
    assert start(typed).wait(600) == 0, said(tmp_path)
    takes = time.monotonic() - began
    predicted = tmp_path / "gdeq" / "results" / "predictions" / "train.extxyz"
    whole = ase.io.read(predicted, ":")
    predicted.unlink()
    moments = random.Random(0)
    for _ in range(4):
        process = start(typed)
        try:
            process.wait(moments.uniform(0.6, 1.0) * takes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert start(typed).wait(600) == 0, said(tmp_path)
    found = ase.io.read(predicted, ":")
    assert [a.info["row"] for a in found] == [a.info["row"] for a in whole] == list(range(8))
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine.positions, theirs.positions, atol=0.02)
