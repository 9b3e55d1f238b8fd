"""A run's folder is one process's at a time, and whatever ends that process gives it up."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from ase import Atoms

from fairchem_gdeq.evaluation.predictions import Journal
from fairchem_gdeq.training import in_use as module
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.in_use import in_use

HOLDS = """
import sys, time
from pathlib import Path
from fairchem_gdeq.training.in_use import in_use
with in_use(Path(sys.argv[1]), "train"):
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder for training."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


def held(folder, purpose="train"):
    with in_use(folder, purpose):
        return True


def test_a_second_process_is_told_of_the_first_at_once(tmp_path, other):
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"in use by process {other.pid} on .*--task.run_id=NAME\)$"
    ):
        held(tmp_path)
    assert time.monotonic() - began < module.WAIT / 10
    assert held(tmp_path, "validate_test")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dead_process_held_is_taken_over(tmp_path, other, how):
    other.send_signal(how)
    other.wait()
    assert held(tmp_path) and held(tmp_path)


def test_one_that_this_machine_cannot_see_is_waited_for(tmp_path, other, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.5)
    (holder,) = tmp_path.glob("*.json")
    holder.write_text(json.dumps(json.loads(holder.read_text()) | {"machine": "elsewhere"}))
    began = time.monotonic()
    said = r"on elsewhere .*If it is dead, remove .*\.train\.lock$"
    with pytest.raises(ValueError, match=said):
        held(tmp_path)
    assert time.monotonic() - began >= 0.5
    holder.write_text("cut sho")
    with pytest.raises(ValueError, match=r"in use by process \(unknown\)"):
        held(tmp_path)


def test_it_is_given_up_when_something_goes_wrong(tmp_path):
    with pytest.raises(KeyError), in_use(tmp_path, "train"):
        raise KeyError("mine")
    assert held(tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "history.jsonl"))
    said = (
        r"history.jsonl could not be written .*No space left.* MB are free .*start the same command"
    )
    with pytest.raises(OSError, match=said), in_use(tmp_path, "train"):
        raise full
    with pytest.raises(FileNotFoundError), in_use(tmp_path, "train"):
        (tmp_path / "nothing").read_text()


@contextmanager
def full():
    """Nothing can be written to a file inside: as on a full disk, Python's error does not name it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_start_is_said_and_nothing_stays_taken(tmp_path):
    said = r"\.train\.holder\.json could not be written .*make room"
    with pytest.raises(OSError, match=said), full():
        held(tmp_path)
    assert not list(tmp_path.glob("*.json")) and held(tmp_path)


def test_the_file_that_grows_is_named(tmp_path):
    history, journal = History("better"), Journal(tmp_path, "test", "me", 0)
    history.open(tmp_path, 0, 1)
    said = r"history\.jsonl could not be written"
    with pytest.raises(OSError, match=said), in_use(tmp_path, "train"), full():
        history.add_step({"train/step": 1})
    said = r"test\.me\.0\.jsonl could not be written"
    with pytest.raises(OSError, match=said), in_use(tmp_path, "predict"), full():
        journal.append("a", Atoms("H", info={"failed": False}))


def test_what_may_not_be_read_is_not_what_may_not_be_written(tmp_path):
    """Of files elsewhere a run reads; in its folder it writes."""
    run, data = tmp_path / "run", tmp_path / "data.aselmdb"
    for kind in (errno.EACCES, errno.EPERM):
        denied = OSError(kind, os.strerror(kind), str(data))
        said = r"data\.aselmdb: expected a file that may be opened"
        with pytest.raises(OSError, match=said) as caught, in_use(run, "train"):
            raise denied
        assert "written" not in str(caught.value) and "MB" not in str(caught.value)
        denied = OSError(kind, os.strerror(kind), str(run / "results" / "test.json"))
        said = r"test\.json could not be written .*allow writing there"
        with pytest.raises(OSError, match=said), in_use(run, "train"):
            raise denied
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), str(data))
    with pytest.raises(OSError, match="could not be written"), in_use(run, "train"):
        raise read_only


def test_an_error_without_words_is_named_by_its_kind(tmp_path):
    assert "could not be written (OSError)" in module.cannot_write(tmp_path, OSError())


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(OSError, match=r"kept\.txt\.part"):
        written_until_full(path)
    assert path.read_text() == "old"
    with module.whole_file(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def written_until_full(path):
    with module.whole_file(path) as part:
        part.write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
