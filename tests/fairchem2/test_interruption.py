"""The link to the newest checkpoint, whatever fairchem's handler does on other ranks meanwhile."""

import os
import signal

import pytest
from omegaconf import OmegaConf
from torch.distributed.checkpoint.api import CheckpointException

from fairchem_gdeq.fairchem2 import interruption
from fairchem_gdeq.fairchem2.interruption import INTERRUPTED, name_newest
from fairchem_gdeq.fairchem2.relaxing import RelaxingUnit
from fairchem_gdeq.fairchem2.runner import GDEQRunner


@pytest.fixture(autouse=True)
def handlers():
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("found", ["after its link", "before it"])
def test_a_folder_that_another_rank_makes_meanwhile_is_removed_again(tmp_path, found):
    folder, checkpoint = tmp_path / "state", tmp_path / "step_3"
    checkpoint.mkdir()
    folder.mkdir()
    late = [True, True]  # other ranks come to it twice

    def link():
        """As fairchem's, which removes the file that it finds."""
        assert not folder.exists()
        if found == "before it" and late and late.pop():
            folder.mkdir()
        if os.path.lexists(folder):
            os.remove(folder)
        if found == "after its link" and late and late.pop():
            folder.mkdir()
        folder.symlink_to(checkpoint)
        return True

    assert name_newest(folder, link, local=False)
    assert folder.resolve() == checkpoint and not late
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_a_second_signal_does_nothing(tmp_path):
    def link():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        return False

    assert not name_newest(tmp_path / "state", link, local=True)


def test_other_ranks_wait_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "rank", lambda: 1)
    monkeypatch.setattr(interruption, "PATIENCE", 0.2)
    assert not name_newest(tmp_path / "state", pytest.fail, local=False)
    (tmp_path / "state").symlink_to(tmp_path)
    assert name_newest(tmp_path / "state", pytest.fail, local=False)


class Stopped(GDEQRunner):
    """A runner of nothing, whose training ends by an error; before, a signal may come."""

    def __init__(self, folder, scheduler, told):
        self.mode, self.told = "train", told
        places = {f"{name}_dir": str(folder / name) for name in ("results", "checkpoint")}
        (folder / "checkpoint").mkdir()
        self.job_config = OmegaConf.create({"scheduler": {"mode": scheduler}, "metadata": places})

    def _check_folder(self):
        pass

    def _check_structures(self):
        pass

    def train(self):
        if self.told:
            self.save_state(str(self.results / "state"), is_preemption=True)
        raise ValueError("Default process group has not been initialized")


def test_what_torch_makes_of_a_signal_ends_as_an_interruption(tmp_path):
    with pytest.raises(SystemExit) as caught:
        Stopped(tmp_path, "local", told=True).run()
    assert caught.value.code == INTERRUPTED


@pytest.mark.parametrize(("scheduler", "told"), [("local", False), ("slurm", True)])
def test_an_error_of_its_own_stays_one(tmp_path, scheduler, told):
    with pytest.raises(ValueError, match="process group"):
        Stopped(tmp_path, scheduler, told).run()


class Loading(RelaxingUnit):
    """A unit whose loading of a checkpoint is ended, as torch says it."""

    def __init__(self, folder, cause):
        self.job_config = OmegaConf.create({"metadata": {"checkpoint_dir": str(folder)}})
        self.cause = cause

    def _load(self, checkpoint_location):
        raise CheckpointException("load", {0: (self.cause, None)})


def test_a_signal_while_a_checkpoint_is_loaded_is_not_its_damage(tmp_path):
    with pytest.raises(SystemExit, match="3"):
        Loading(tmp_path, SystemExit(3))._execute_load_state(str(tmp_path / "step_1"))


@pytest.mark.parametrize(
    ("folder", "advice"),
    [("step_1", "Remove that folder"), ("../other/step_1", "Name another with")],
)
def test_one_that_is_damaged_is_not_to_be_removed_where_it_is_of_another_run(
    tmp_path, folder, advice
):
    own = tmp_path / "own"
    with pytest.raises(ValueError, match=f"found what cannot be read .*{advice}"):
        Loading(own, OSError("gone"))._execute_load_state(str(own / folder))
