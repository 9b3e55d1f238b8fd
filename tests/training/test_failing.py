"""When a run in which structures diverge is ended."""

import pytest

from fairchem_gdeq.training.failing import LOOKED_AT, Diverging, TooManyDiverged


def steps_until_it_ends(most, shares, structures=10):
    counted = Diverging(most)
    for step, share in enumerate(shares, start=1):
        try:
            counted.add(structures, share)
        except TooManyDiverged as error:
            return step, str(error)
    return None, ""


def test_nothing_is_said_of_a_few_structures():
    step, said = steps_until_it_ends(0.5, [1.0] * 50)
    assert step == LOOKED_AT // 10
    assert "100 of the latest 100 structures diverged" in said and "Lower lr or alpha" in said


def test_a_share_that_is_allowed_goes_on():
    assert steps_until_it_ends(0.5, [0.5] * 200) == (None, "")
    assert steps_until_it_ends(1.0, [1.0] * 200) == (None, "")


def test_the_latest_count_however_well_it_began():
    step, _ = steps_until_it_ends(0.5, [0.0] * 1000 + [1.0] * 50)
    assert step == 1000 + 6  # of the latest ten steps


@pytest.mark.parametrize("structures", [1, 7, 1000])
def test_batches_of_any_size(structures):
    step, _ = steps_until_it_ends(0.2, [0.3] * 500, structures)
    assert step == -(-LOOKED_AT // structures)
