"""The link to the newest checkpoint, whatever fairchem's handler does on other ranks meanwhile."""

import signal

import pytest

from fairchem_gdeq.fairchem2 import interruption
from fairchem_gdeq.fairchem2.interruption import name_newest


@pytest.fixture(autouse=True)
def handlers():
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_folder_that_another_rank_makes_meanwhile_is_removed_again(tmp_path):
    folder, checkpoint = tmp_path / "state", tmp_path / "step_3"
    checkpoint.mkdir()
    folder.mkdir()
    late = [True, True]  # other ranks come to it twice

    def link():
        assert not folder.exists()
        if late and late.pop():
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
