"""A run of several processes has the numbers of one that takes the same structures in each step."""

import ase.io
import numpy as np
import pytest

from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.running import assert_equal_up_to_rounding, comparable, ranks_of

pytestmark = pytest.mark.slow
STRUCTURES, ATOMS = 8, 8  # of training, all of them in each step
# An adjoint of a random potential, solved loosely, magnifies the last digits of single precision.
MAGNIFIED = ("train/grad_norm", "train/adjoint_residual")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Structures of one size, so that as many batches as processes hold all of them."""
    folder = tmp_path_factory.mktemp("inputs")
    for split, count, seed in (("train", STRUCTURES, 0), ("val", 5, 1), ("test", 5, 2)):
        small.write_is2rs(folder / split, small.silicon(3 * count, seed)[::3])
    small.write_frames(folder / "val_frames", small.silicon(3, 4))
    small.checkpoint(folder / "esen.pt")
    return folder


def arguments(inputs, run, ranks):
    """Of a run that learns its step as well, and reads its data in a further process."""
    batch = STRUCTURES // ranks * ATOMS
    typed = ["alpha_lr=1e-4", "forces.src=none", "forces.max_atoms=null", f"max_atoms={batch}"]
    return inputs, run, "--mode", "train", "epochs=2", "num_workers=1", *typed


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone")
    code, _, err = ranks_of(1, *arguments(inputs, run, 1))
    assert code == 0, err[-3000:]
    return run


@pytest.mark.parametrize("ranks", [2, 4])
def test_training_validation_and_prediction(inputs, alone, tmp_path, ranks):
    """Five structures to validate and to score: some processes have one more, or pad."""
    code, _, err = ranks_of(ranks, *arguments(inputs, tmp_path, ranks))
    assert code == 0, err[-3000:]
    many, one = (comparable(run / "gdeq") for run in (tmp_path, alone))
    assert len(one["history"]["steps"]) == 2
    for mine, theirs in zip(many["history"]["steps"], one["history"]["steps"], strict=True):
        for key in MAGNIFIED:
            assert mine.pop(key) == pytest.approx(theirs.pop(key), rel=5e-3)
    assert_equal_up_to_rounding(many["history"], one["history"])
    assert_equal_up_to_rounding(many["records"], one["records"])
    ends = []
    for run, count in ((alone, 1), (tmp_path, ranks)):
        code, _, err = ranks_of(count, inputs, run, "--mode", "predict")
        assert code == 0, err[-3000:]
        ends.append(ase.io.read(run / "gdeq/results/predictions/test.extxyz", ":"))
    assert [a.info["row"] for a in ends[1]] == [a.info["row"] for a in ends[0]] == [0, 1, 2, 3, 4]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-3)


def test_more_processes_than_batches_are_told_what_to_set(inputs, tmp_path):
    typed = list(arguments(inputs, tmp_path, 1))  # all structures in one batch
    code, _, err = ranks_of(2, *typed)
    assert code != 0
    said = [line for line in err.splitlines() if "processes want one each" in line][-1]
    assert "lower max_atoms or job.scheduler.ranks_per_node" in said
