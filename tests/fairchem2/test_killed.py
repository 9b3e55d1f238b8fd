"""A run that is killed again and again, at any moment, ends like one that never was."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest

from tests import commands
from tests.device.checks import assert_same
from tests.fairchem2.running import command, comparable

pytestmark = pytest.mark.slow
KILLS = 20  # with one rank, and as many with two
# A short run, of two steps an epoch, of which writing is a large part; and a checkpoint before each step.
SHORT = [
    "checkpoint_minutes=0",
    "train_structures=0.5",
    "relaxer.max_steps=8",
    "runner.train_eval_unit.signal.max_steps=8",
    "runner.train_eval_unit.signal.adjoint.max_vjps=4",
]


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments(ranks, inputs, trained, tmp_path):  # the server has begun
    """Runs follow one another, each until it has ended in spite of the kills, until these are used up."""
    typed = ["--mode", "train", *SHORT, f"job.scheduler.ranks_per_node={ranks}"]
    whole = tmp_path / "whole"
    began = time.monotonic()
    ends(start(inputs, whole, *typed), whole)
    takes = time.monotonic() - began
    expected = comparable(whole / "gdeq")
    moments = random.Random(ranks)
    kills = runs = 0
    while kills < KILLS:
        run = tmp_path / f"run{runs}"
        runs += 1
        while True:
            process = start(inputs, run, *typed)
            process.join(moments.uniform(0.05, 1.0) * takes if kills < KILLS else 600)
            if process.exitcode is not None:
                assert process.exitcode == 0, said(run)
                break
            assert kills < KILLS, f"it does not end: {said(run)}"
            workers = ranks_of(process.pid)
            if kills % 2 and workers:  # one of them: the others are told to end
                os.kill(moments.choice(workers), signal.SIGKILL)
                process.join(120)
                assert process.exitcode, said(run)
            else:
                kill(process)
            kills += 1
        assert_same(comparable(run / "gdeq"), expected, rtol=0, atol=0)


def start(inputs, folder, *typed):
    """The command, which says what it says into a file there."""
    os.makedirs(folder, exist_ok=True)
    outputs = 2 * [folder / "said.txt"]
    return commands.started(*command(inputs, folder, *typed)[1:], outputs=outputs, leads=True)


def kill(process):
    """It and its ranks, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def ranks_of(leader):
    """Processes that torch has started as ranks of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            (parent,) = re.findall(r"PPid:\s(\d+)", (path / "status").read_text())
            if int(parent) == leader:
                found.append(int(path.name))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def said(run):
    return (run / "said.txt").read_text()[-5000:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_prediction_has_every_structure_once(ranks, inputs, trained, tmp_path):
    """Structures end where they do uninterrupted, but for the last digits of packs in other company."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq")
    typed = ["--mode", "predict", "split=train", "eval_max_atoms=17"]
    typed += [f"job.scheduler.ranks_per_node={ranks}"]
    began = time.monotonic()
    ends(start(inputs, tmp_path, *typed), tmp_path)
    takes = time.monotonic() - began
    predicted = tmp_path / "gdeq" / "results" / "predictions" / "train.extxyz"
    whole = ase.io.read(predicted, ":")
    predicted.unlink()
    moments, killed = random.Random(0), 0
    for _ in range(4):
        process = start(inputs, tmp_path, *typed)
        process.join(moments.uniform(0.5, 1.0) * takes)
        if process.exitcode is None:
            kill(process)
            killed += 1
    assert killed
    ends(start(inputs, tmp_path, *typed), tmp_path)
    found = ase.io.read(predicted, ":")
    assert [a.info["row"] for a in found] == [a.info["row"] for a in whole] == list(range(8))
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(mine.positions, theirs.positions, atol=0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_or_predicts_is_no_end(how, inputs, trained, tmp_path):
    """What comes after it, `predict && submit`, does not go on; the same command does."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq")
    typed = ["--mode", "predict", "split=train", "eval_max_atoms=17"]
    predicted = tmp_path / "gdeq" / "results" / "predictions" / "train.extxyz"
    began = time.monotonic()
    ends(start(inputs, tmp_path, *typed), tmp_path)
    takes, told = time.monotonic() - began, 0
    for share in (0.02, 0.2, 0.4, 0.6, 0.8):
        predicted.unlink(missing_ok=True)
        process = start(inputs, tmp_path, *typed)
        process.join(share * takes)
        if process.exitcode is None:
            os.kill(process.pid, how)
            process.join(120)
            told += 1
            assert process.exitcode or predicted.exists(), said(tmp_path)
    assert told > 2
    ends(start(inputs, tmp_path, *typed), tmp_path)
    assert [a.info["row"] for a in ase.io.read(predicted, ":")] == list(range(8))


def ends(process, run):
    """It does, well."""
    process.join(600)
    assert process.exitcode == 0, said(run)
