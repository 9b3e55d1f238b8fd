"""A small data set, and a run on it that each file of tests has once."""

import pytest

from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.running import fairchem


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for split, count, seed in (("train", 8, 0), ("val", 3, 1), ("test", 3, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    small.write_frames(folder / "train_frames", small.silicon(6, 3))
    small.write_frames(folder / "val_frames", small.silicon(3, 4))
    small.checkpoint(folder / "esen.pt")
    small.checkpoint(folder / "adapt.pt", "adapt")
    return folder


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    code, out, err = fairchem(inputs, run_dir, "--mode", "train")
    assert code == 0, err[-3000:]
    return run_dir, out, err
