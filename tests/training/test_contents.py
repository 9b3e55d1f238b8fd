"""What tells data from others under the same name."""

import os

import pytest

from fairchem_gdeq.training import contents


def told(folder):
    return dict(contents.contents_of({"runner.x.src": [str(folder)]})).get("runner.x.src")


def test_data_of_the_same_size_is_told_apart(tmp_path):
    (tmp_path / "a.aselmdb").write_bytes(b"rows")
    before = told(tmp_path)
    (tmp_path / "a.aselmdb-lock").write_bytes(b"a reader")
    assert told(tmp_path) == before
    (tmp_path / "a.aselmdb").write_bytes(b"rowz")
    assert told(tmp_path) != before
    assert told(tmp_path / "nowhere") is None


@pytest.mark.parametrize("place", [0, 1, 50, 98, 99])
@pytest.mark.parametrize("number", [0, 1])
def test_a_change_anywhere_in_small_data_is_seen_and_one_at_the_ends_of_large(
    tmp_path, monkeypatch, place, number
):
    monkeypatch.setattr(contents, "BLOCK", 10)
    files = [tmp_path / f"{k}.aselmdb" for k in range(2)]
    for file in files:
        file.write_bytes(os.urandom(100))
    small, large = {}, {}
    for found in (small, large):
        for blocks in (20, 8):
            monkeypatch.setattr(contents, "BLOCKS", blocks)
            found[blocks] = told(tmp_path)
        changed = bytearray(files[number].read_bytes())
        changed[place] ^= 1
        files[number].write_bytes(changed)
    assert small[20] != large[20], "all blocks are read"
    assert (small[8] != large[8]) == (place // 10 in (0, 3, 6, 9)), "four of ten blocks are read"


def test_many_files_are_sampled_too(tmp_path, monkeypatch):
    """One block of every other file or so; all sizes."""
    monkeypatch.setattr(contents, "BLOCKS", 4)
    files = [tmp_path / f"{k}.traj" for k in range(7)]
    for k, file in enumerate(files):
        file.write_bytes(bytes([k] * 10))
    before, seen = told(tmp_path), []
    for k, file in enumerate(files):
        file.write_bytes(bytes([k + 100] * 10))
        seen.append(told(tmp_path) != before)
        file.write_bytes(bytes([k] * 10))
    assert seen == [True, False, True, False, True, False, True]
    files[1].write_bytes(bytes([1] * 11))
    assert told(tmp_path) != before
