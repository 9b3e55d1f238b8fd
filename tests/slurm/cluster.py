"""A Slurm of one node on this machine, in a folder of its own: three daemons, started by hand.

It needs root, and Debian's ``slurmctld slurmd slurm-client munge``. Nothing of a Slurm that is there
already is touched: keys, sockets, ports, states and logs are the folder's own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
START = 60.0  # seconds until a daemon has to answer

# Memory and cores are those that jobs ask for, whatever this machine has. A job of the partition
# ``urgent`` preempts one of ``normal``, which is told by the signal that it has asked for.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000000
PartitionName=normal Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host} PriorityTier=10
"""


@dataclass(frozen=True)
class Cluster:
    """A Slurm that runs.

    Attributes:
        folder: its files.
        environment: in which its commands find it.
    """

    folder: Path
    environment: Mapping[str, str]

    def ask(self, *command: str) -> str:
        """What a command prints.

        Raises:
            AssertionError: it fails; with what it said.
        """
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """Of a job, such as RUNNING, COMPLETED or FAILED."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """One that ``scontrol show job`` has, such as ``Restarts``."""
        shown = self.ask("scontrol", "--oneliner", "show", "job", job)
        fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
        return fields.get(name, "")

    def hurry(self, job: str) -> None:
        """Let a job that was put back begin soon; Slurm has it wait for two minutes.

        Not at once: the node refuses a job that it has ended in the same second.
        """
        time.sleep(3)
        self.ask("scontrol", "update", f"job={job}", "starttime=now")

    def wait(self, job: str, states: str, seconds: float) -> str:
        """The state in which a job comes to be, of those that are asked for.

        Raises:
            AssertionError: it has not, in so many seconds.
        """
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states.split("|"):
            assert time.monotonic() < deadline, f"job {job} is {state}, expected {states}"
            time.sleep(0.2)
        return state


def missing() -> str | None:
    """What there is not to start a cluster; None where it can be."""
    without = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if without:
        return (
            f"there is no {', '.join(without)}: apt-get install slurmctld slurmd slurm-client munge"
        )
    return "a cluster can only be started by root" if os.geteuid() else None


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster, which ends with the context."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    ports = {"controller": _free_port(), "node": _free_port()}
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, **ports))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}
    for inherited in [name for name in environment if name.startswith("SLURM_JOB")]:
        del environment[inherited]
    daemons: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        out = (folder / f"{name}.out").open("wb")
        daemons.append(subprocess.Popen([name, *command], env=environment, stdout=out, stderr=out))

    cluster = Cluster(folder, environment)
    try:
        files = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
        files |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
        # --force: a folder of temporary files may be written by all, which it would refuse.
        start("munged", "-F", "--force", *(f"--{k}={v}" for k, v in files.items()))
        _until(files["socket"].exists, cluster)
        start("slurmctld", "-D", "-f", str(conf))
        start("slurmd", "-D", "-f", str(conf), "-N", host)
        _until(lambda: _idle(cluster), cluster)
        try:
            yield cluster
        finally:
            for how in (["--full", "--signal=KILL"], []):
                command = ["scancel", "--user=root", *how]
                subprocess.run(command, env=environment, check=False)
            _until(lambda: not cluster.ask("squeue", "--noheader"), cluster)
    finally:
        for daemon in reversed(daemons):  # munged last: the others still ask it
            daemon.terminate()
            daemon.wait(START)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for the tests of a file, which are skipped where there can be none: ``pytest -rs`` says why."""
    if why := missing():
        pytest.skip(why)
    with ExitStack() as stack:
        try:
            started = stack.enter_context(running(tmp_path_factory.mktemp("slurm")))
        except TimeoutError as error:  # a machine that does not let daemons be
            pytest.skip(str(error))
        yield started


def _idle(cluster: Cluster) -> bool:
    command = ["sinfo", "--noheader", "--format=%T"]
    done = subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and set(done.stdout.split()) == {"idle"}


def _until(ready: Callable[[], object], cluster: Cluster) -> None:
    deadline = time.monotonic() + START
    while not ready():
        if time.monotonic() > deadline:
            logs = [p.read_text()[-2000:] for p in sorted(cluster.folder.glob("*.[lo]*"))]
            raise TimeoutError("the cluster did not start:\n" + "\n".join(logs))
        time.sleep(0.1)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
