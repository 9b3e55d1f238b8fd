"""What is submitted to Slurm, without one: only where its files are there, and how its job begins."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission

from fairchem_gdeq.fairchem2.submitted import Program
from tests import commands
from tests.fairchem2.running import ROOT, command, fairchem

SLURM = ("job.scheduler.mode=SLURM", "job.scheduler.slurm.partition=any")
REQUEUE = "job.scheduler.slurm.additional_parameters={requeue: true}"  # of docs/cluster.md
CONFIG = {
    "job": {
        "runner_state_path": "earlier",
        "metadata": {"preemption_checkpoint_dir": "preemption_state"},
    }
}


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """The file in which a stand-in for Slurm writes what it is given."""
    programs, submitted = tmp_path / "programs", tmp_path / "submitted"
    programs.mkdir()
    said = f'#!/bin/sh\necho "$@" >> {submitted}\necho "Submitted batch job 77"\n'
    for name, text in (("sbatch", said), ("srun", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return submitted


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("base=nowhere.pt", "fairchem: base potential nowhere.pt: no such file"),
        ("paths.val=nowhere", "fairchem: data set nowhere: no such file or folder"),
        ("paths.val=${paths.train}", "is of the splits"),
    ],
)
def test_nothing_is_submitted_without_its_files(inputs, sbatch, tmp_path, lacking, said):
    done = fairchem(inputs, tmp_path / "runs", "--mode", "train", *SLURM, lacking)
    assert done.returncode != 0 and said in done.stderr.splitlines()[-1]
    assert not sbatch.exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_gpu_is_of_the_other_machine_and_errors_there_are_a_sentence(inputs, sbatch, tmp_path):
    """The job is started here by hand, as Slurm would."""
    extra = ("--mode", "train", *SLURM, "job.device_type=CUDA", "dataset=another", REQUEUE)
    done = commands.fairchem(*command(inputs, tmp_path, *extra)[1:], cwd=ROOT)
    assert done.returncode == 0 and "slurm id: 77" in done.stderr, done.stderr[-3000:]
    assert len(sbatch.read_text().splitlines()) == 1
    asked = (tmp_path / "gdeq" / "logs" / "77_submission.sh").read_text()
    assert "#SBATCH --requeue\n" in asked and "#SBATCH --signal=USR2@90\n" in asked
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "OMP_NUM_THREADS": "1"}
    job = [sys.executable, "-m", "submitit.core._submit", str(tmp_path / "gdeq" / "logs")]
    done = subprocess.run(
        job, env=os.environ | slurm, capture_output=True, text=True, check=False, cwd=ROOT
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and last.startswith("fairchem: "), done.stderr[-3000:]
    assert "not for 'another'" in last and "Traceback" not in done.stderr.split("exception")[-1]


def told(program, tmp_path):
    """What submitit puts into the queue when a signal comes; and how often it does."""
    pickle, queued = tmp_path / "77_submitted.pkl", []
    place = SimpleNamespace(global_rank=0, _requeue=queued.append)
    delayed = DelayedSubmission(program, OmegaConf.create(CONFIG))
    delayed.set_timeout(60, 3)
    handler = SignalHandler(place, SimpleNamespace(submitted_pickle=pickle), delayed)
    with pytest.raises(SystemExit):
        handler.checkpoint_and_try_requeue(signal.SIGUSR2)
    assert queued == [3]
    return DelayedSubmission.load(pickle)


def test_a_signal_before_there_is_a_runner_puts_the_job_back(tmp_path):
    """It begins from where it was to begin: nothing else has been saved."""
    again = told(Program(), tmp_path)
    assert type(again.function) is Program and again.function.runner is None
    assert again.args == (CONFIG,)


@pytest.mark.parametrize(("saved", "path"), [(True, "preemption_state"), (False, None)])
def test_a_signal_later_has_it_go_on_from_the_newest_checkpoint(tmp_path, saved, path):
    program = Program()
    program.config, program.run_type = OmegaConf.create(CONFIG), "run"
    program.runner = SimpleNamespace(save_state=lambda *_, **__: saved)
    again = told(program, tmp_path)
    assert type(again.function) is Program and again.function.runner is None
    assert again.args[0].job.runner_state_path == path
