"""Runs of a real Slurm: to their end, preempted, out of time, killed, and many seeds at a time."""

import os
import re
import shlex
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests import commands
from tests.fairchem2.running import (
    FAIRCHEM,
    ROOT,
    assert_equal_up_to_rounding,
    command,
    comparable,
)

pytestmark = pytest.mark.slurm
MINUTES = 60.0
SMALL = [  # of a node that this machine is not
    "job.scheduler.mode=SLURM",
    "job.scheduler.slurm.mem_gb=2",
    "job.scheduler.slurm.cpus_per_task=1",
    "job.scheduler.slurm.partition=normal",
    "checkpoint_minutes=0",  # before every step
]


def submit(cluster, inputs, run_dir, *extra):
    """The number of the job."""
    typed = command(inputs, run_dir, "--mode", "train", *SMALL, *extra)[1:]
    done = commands.fairchem(*typed, env=cluster.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (job,) = re.findall(r"slurm id: (\d+)", done.stderr)
    return job


def same_as(run, folder):
    assert_equal_up_to_rounding(comparable(folder / "gdeq"), comparable(run / "gdeq"))


def reach(folder, step, seconds=3 * MINUTES):
    """Wait until the checkpoint of a step is there."""
    deadline = time.monotonic() + seconds
    while not (folder / "gdeq" / "checkpoints" / f"step_{step}" / ".metadata").exists():
        assert time.monotonic() < deadline, logs(folder)[-5000:]
        time.sleep(0.1)


def logs(folder):
    """What the tasks of jobs have said."""
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*_log.err")))


def ends(cluster, job, folder, expected="COMPLETED"):
    state = cluster.wait(job, "COMPLETED|FAILED|TIMEOUT|CANCELLED|PREEMPTED", 5 * MINUTES)
    assert state == expected, logs(folder)[-5000:]


def fail(cluster, job, folder):
    """Its process is killed, as it would be for want of memory."""
    os.kill(process_of(folder), signal.SIGKILL)
    ends(cluster, job, folder, "FAILED")


def go_on(cluster, job, folder):
    """A job that has failed is put back, and ends."""
    cluster.ask("scontrol", "requeue", job)
    cluster.wait(job, "PENDING|RUNNING", MINUTES)
    cluster.hurry(job)
    cluster.wait(job, "RUNNING", MINUTES)
    ends(cluster, job, folder)


def test_a_run_to_its_end(cluster, inputs, trained, tmp_path):
    job = submit(cluster, inputs, tmp_path)
    ends(cluster, job, tmp_path)
    same_as(trained[0], tmp_path)


def test_a_run_of_two_ranks_to_its_end(cluster, inputs, tmp_path):
    """Two tasks of Slurm's, as the same two ranks without it; and it is killed once on the way."""
    local, folder = tmp_path / "local", tmp_path / "slurm"
    done = commands.ranks(2, *command(inputs, local, "--mode", "train")[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    job = submit(cluster, inputs, folder, "job.scheduler.ranks_per_node=2")
    reach(folder, 2)
    fail(cluster, job, folder)
    go_on(cluster, job, folder)
    assert len(list(folder.rglob("*_log.err"))) == 2, "one a task"
    same_as(local, folder)


def test_a_preempted_run_is_put_back_and_goes_on(cluster, inputs, trained, tmp_path):
    """By a job that needs its node: it is told, and waits in the queue until that has ended."""
    job = submit(cluster, inputs, tmp_path)
    reach(tmp_path, 4)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--exclusive", "--wrap=sleep 5"]
    other = cluster.ask(*urgent, f"--output={tmp_path}/urgent.out").strip()
    cluster.wait(job, "PENDING", MINUTES)
    assert cluster.field(job, "Restarts") == "1"
    cluster.wait(other, "COMPLETED", MINUTES)
    cluster.hurry(job)
    ends(cluster, job, tmp_path)
    assert "Done loading checkpoint from" in logs(tmp_path)
    same_as(trained[0], tmp_path)


def test_a_killed_step_fails_and_goes_on_when_it_is_requeued(cluster, inputs, trained, tmp_path):
    job = submit(cluster, inputs, tmp_path)
    reach(tmp_path, 4)
    fail(cluster, job, tmp_path)
    assert not (tmp_path / "gdeq" / "results" / "test.json").exists()
    go_on(cluster, job, tmp_path)
    same_as(trained[0], tmp_path)


def test_a_run_out_of_time_is_put_back_and_goes_on(cluster, inputs, trained, tmp_path):
    """Slurm tells it 90 seconds before its end, a minute or two from now, and looks at the time twice a
    minute: until then the run is held, as it would be over by itself.
    """
    job = submit(cluster, inputs, tmp_path)
    reach(tmp_path, 4)
    with held(process_of(tmp_path)) as was_told:
        hours, minutes, _ = map(int, cluster.field(job, "RunTime").split(":"))
        limit = 60 * hours + minutes + 2
        cluster.ask("scontrol", "update", f"job={job}", f"timelimit={limit}")
        deadline = time.monotonic() + 2 * MINUTES
        while not was_told():
            assert time.monotonic() < deadline, "Slurm has not told the run of its end"
            time.sleep(0.2)
    cluster.wait(job, "PENDING", MINUTES)
    assert cluster.field(job, "Restarts") == "1"
    cluster.ask("scontrol", "update", f"job={job}", "timelimit=60")
    cluster.hurry(job)
    ends(cluster, job, tmp_path)
    same_as(trained[0], tmp_path)


def test_an_array_over_seeds(cluster, inputs, tmp_path):
    """The script of docs/cluster.md: one config, a seed and a folder for each job."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    scripts = re.findall(r"```bash\n(#!/bin/bash\n[^`]*--array[^`]*)```", page)
    (script,) = [text for text in scripts if "--mode train" in text]
    typed = command(inputs, tmp_path, "epochs=1")[1:]
    shown = "fairchem -c configs/own/gdeq.yml --mode train data=mydata base=mymodel.pt dataset=NAME"
    assert script.count(shown) == 1
    program = shlex.join([FAIRCHEM, *typed, "--mode", "train"])
    (tmp_path / "seeds.sh").write_text(script.replace(shown, program))
    submitted = ["sbatch", "--parsable", "--array=0-1", f"--output={tmp_path}/%a.out"]
    job = cluster.ask(*submitted, f"{tmp_path}/seeds.sh").strip()
    ends(cluster, f"{job}_0", tmp_path)
    ends(cluster, f"{job}_1", tmp_path)
    losses = [
        comparable(tmp_path / f"seed{k}")["history"]["steps"][0]["train/loss"] for k in range(2)
    ]
    assert losses[0] != losses[1]


@contextmanager
def held(process):
    """A process that does nothing; yields whether SIGUSR2 waits for it, or has ended it.

    Slurm lets a stopped process go on when it has a signal for it.
    """
    os.kill(process, signal.SIGSTOP)

    def was_told():
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        waiting = [int(line.split()[1], 16) for line in status.splitlines() if "Pnd:" in line]
        return any(mask >> (signal.SIGUSR2 - 1) & 1 for mask in waiting)

    try:
        yield was_told
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def process_of(folder):
    """The process that trains: submitit's, for a folder of logs below this one."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"submitit.core._submit" in (line := path.read_bytes()) and str(folder).encode() in line
    ]
    return max(found)  # srun has the same words, and came before
