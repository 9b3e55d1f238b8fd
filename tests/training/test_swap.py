"""A folder that is written again is whole at any moment."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from fairchem_gdeq.training.swap import remove, replacing


def write(folder, text):
    with replacing(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def held(folder):
    """What each file of a folder holds."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_new_one_takes_the_place_of_the_old(tmp_path):
    folder = tmp_path / "deep" / "checkpoint"
    write(folder, "old")
    (folder / "left over").write_text("of the old one")
    write(folder, "new")
    assert held(folder) == {"a": "new", "b": "new"}
    assert list(folder.parent.iterdir()) == [folder]


def test_what_goes_wrong_inside_leaves_the_old_one(tmp_path):
    folder = tmp_path / "checkpoint"
    write(folder, "old")
    with pytest.raises(TypeError):
        write(folder, b"no text")
    assert held(folder) == {"a": "old", "b": "old"}
    write(folder, "new")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_between_two_moves_leaves_a_whole_one(tmp_path, monkeypatch, moves):
    folder = tmp_path / "checkpoint"
    write(folder, "old")
    done = []

    def replace(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", replace)
    if moves < 2:
        with pytest.raises(KeyboardInterrupt):
            write(folder, "new")
    else:
        write(folder, "new")
    whole = [held(path) for path in tmp_path.iterdir()]
    assert all(each in ({"a": t, "b": t} for t in ("old", "new")) for each in whole) and whole


def test_a_full_disk_leaves_the_old_one_and_says_so(tmp_path):
    folder = tmp_path / "checkpoint"
    write(folder, "old")
    said = r"checkpoint could not be written .*start the same command"
    with pytest.raises(OSError, match=said), replacing(folder):
        torch.save(torch.ones(30_000), "/dev/full")
    with pytest.raises(OSError, match=said), replacing(folder) as new:
        torch.save(torch.ones(3), new)  # is a folder
    assert held(folder) == {"a": "old", "b": "old"}


class Failing(dcp.FileSystemWriter):
    """Writes no tensor: something is raised where torch writes."""

    def __init__(self, folder, error):
        super().__init__(folder)
        self.error = error

    def write_data(self, plan, planner):
        raise self.error


def save(folder, error):
    """A checkpoint by torch, as fairchem writes it: what is raised comes in an error of torch's."""
    with replacing(folder) as new:
        dcp.save({"w": torch.ones(3)}, storage_writer=Failing(new, error), no_dist=True)


def test_torch_s_error_of_a_full_disk_says_so(tmp_path):
    with pytest.raises(OSError, match=r"step_4 could not be written .*No space left.*make room"):
        save(tmp_path / "step_4", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(-1), KeyboardInterrupt()])
def test_a_signal_while_torch_writes_ends_as_it_does(tmp_path, error):
    folder = tmp_path / "step_4"
    write(folder, "old")
    with pytest.raises(type(error)) as caught:
        save(folder, error)
    assert caught.value is error and held(folder) == {"a": "old", "b": "old"}


def test_other_errors_are_not_of_writing(tmp_path):
    with pytest.raises(CheckpointException, match="NCCL"):
        save(tmp_path / "step_4", RuntimeError("NCCL error: unhandled system error"))
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NCCL timed out")):
        with pytest.raises(RuntimeError) as caught, replacing(tmp_path / "step_4"):
            raise error
        assert caught.value is error


def test_a_kill_while_one_is_deleted_leaves_no_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "step_2"
    folder.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (folder / name).touch()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(folder)
    assert not (folder / ".metadata").exists()
    monkeypatch.undo()
    remove(folder)
    remove(folder)
    assert not folder.exists()
