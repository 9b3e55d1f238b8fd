"""Adjoints of earlier visits: whose they are, whether they fit, and where they go."""

from types import SimpleNamespace

import pytest
import torch

from fairchem_gdeq.training import adjoints
from fairchem_gdeq.training.adjoints import Adjoints


def seen(rows, sizes, seed=0, good=None):
    """Adjoints of a batch, and the u [n, 3] that were kept."""
    u = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed))
    contributing = torch.ones(len(rows), dtype=torch.bool) if good is None else torch.tensor(good)
    known = Adjoints()
    known.keep(rows, sizes, SimpleNamespace(adjoint=u, contributing=contributing))
    return known, u


def test_nothing_known_is_no_guess():
    """A guess of zeros would cost a VJP."""
    known, u = seen([3, 5], [2, 4], good=[True, False])
    assert Adjoints().recall([3], [2], u) is None
    assert known.recall([5, 9], [4, 1], u) is None  # one did not contribute, one never came
    guess = known.recall([5, 3], [4, 2], u.double())
    torch.testing.assert_close(guess, torch.cat([torch.zeros(4, 3), u[:2]]).double())


def test_a_guess_of_another_size_is_dropped():
    known, u = seen([0, 1], [8, 3])
    assert known.recall([0], [16], u) is None
    guess = known.recall([0, 1], [16, 3], u)
    assert guess.shape == (19, 3) and (guess[:16] == 0).all()
    torch.testing.assert_close(guess[16:], u[8:])


@pytest.fixture
def process(monkeypatch):
    """Makes the module believe that it is some rank of some number."""

    def be(rank, number):
        monkeypatch.setattr(adjoints, "rank", lambda: rank)
        monkeypatch.setattr(adjoints, "ranks", lambda: number)

    return be


def rows_after_loading(folder):
    found = Adjoints()
    found.load(folder)
    return sorted(found.known)


def test_every_rank_writes_and_gets_back_what_was_its_own(tmp_path, process):
    parts = {0: seen([4, 1], [3, 2], 0), 1: seen([7], [5], 1)}
    for rank, (mine, _) in parts.items():
        process(rank, 2)
        mine.save(tmp_path)
    for rank, rows in ((0, [1, 4]), (1, [7])):
        process(rank, 2)
        assert rows_after_loading(tmp_path) == rows
    for rank in range(3):  # another number of ranks: each may need any
        process(rank, 3)
        assert rows_after_loading(tmp_path) == [1, 4, 7]
    process(0, 1)
    everything = Adjoints()
    everything.load(tmp_path)
    u = torch.cat([parts[0][1], parts[1][1]])
    torch.testing.assert_close(everything.recall([4, 1, 7], [3, 2, 5], u), u)
    everything.save(tmp_path)  # and those of the two are not taken up again
    assert [path.name for path in tmp_path.iterdir()] == ["adjoints.0of1.pt"]


def test_a_rank_that_knew_nothing_gets_nothing(tmp_path, process):
    process(0, 2)
    seen([4], [3])[0].save(tmp_path)
    process(1, 2)
    Adjoints().save(tmp_path)
    assert rows_after_loading(tmp_path) == []
    assert rows_after_loading(tmp_path / "nowhere") == []


def test_a_file_holds_twelve_bytes_an_atom(tmp_path):
    """Also where what is kept are parts of large batches."""
    sizes = [50] * 200
    known, _ = seen(list(range(200)), sizes)
    known.save(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 12 * sum(sizes) + 16 * len(sizes) + 4000
    assert known.known[0].untyped_storage().nbytes() == 12 * 50
