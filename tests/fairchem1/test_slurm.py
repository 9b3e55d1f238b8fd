"""fairchem 1 in jobs of a real Slurm, as local runs.

Its own ``--submit`` is for GPUs: it asks for ``CUDA_VISIBLE_DEVICES`` and NCCL whatever ``--cpu`` says.
"""

import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.fairchem1.test_run import CONSTANT, inputs, results, trained  # noqa: F401 - fixtures
from tests.slurm.cluster import cluster  # noqa: F401 - a fixture

pytestmark = pytest.mark.slurm
MINUTES = 60.0


def test_a_job_that_is_put_back_goes_on_from_its_checkpoint(cluster, inputs, trained, tmp_path):  # noqa: F811
    typed = [str(Path(sys.executable).with_name("fairchem")), "--mode", "train", "--cpu"]
    typed += ["--run-dir", str(tmp_path), "--config-yml", str(inputs / "config.yml")]
    typed += [*CONSTANT, "--optim.checkpoint_every=1"]
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\nOMP_NUM_THREADS=1 {shlex.join(typed)}\n")
    said = tmp_path / "said.txt"
    submitted = ["sbatch", "--parsable", "--partition=normal", "--requeue", "--open-mode=append"]
    job = cluster.ask(*submitted, f"--output={said}", str(script)).strip()
    checkpoint = tmp_path / "checkpoints" / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 3 * MINUTES
    while not checkpoint.exists():
        assert time.monotonic() < deadline, said.read_text()[-3000:]
        time.sleep(0.1)
    cluster.ask("scontrol", "requeue", job)
    cluster.wait(job, "PENDING", 2 * MINUTES)
    cluster.hurry(job)
    state = cluster.wait(job, "COMPLETED|FAILED|TIMEOUT|CANCELLED", 5 * MINUTES)
    assert state == "COMPLETED", said.read_text()[-3000:]
    assert cluster.field(job, "Restarts") == "1"
    one, two = (results(each)["records"]["tuned"] for each in (trained, tmp_path))
    for mine, its in zip(two, one, strict=True):
        assert mine["sid"] == its["sid"]
        assert mine["delta_q"] == pytest.approx(its["delta_q"], rel=1e-3)
