"""Paired comparison of two models: against closed forms, and what it must not fall for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End, compare

BASIN = Basin(delta_q=2.0)


def ends(values, diverged=()):
    return [End(row, value, row in diverged) for row, value in enumerate(values)]


def test_the_interval_is_that_of_the_mean_of_normal_differences():
    rng = np.random.default_rng(0)
    before = np.full(400, 10.0)
    change = rng.normal(-1.0, 2.0, 400)
    found = compare(ends(before), ends(before + change), BASIN)
    error = 1.96 * change.std() / math.sqrt(400)
    assert found.change == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(change.mean() + error, abs=0.1 * error)
    assert found.verdict == "better"
    assert (found.better, found.worse) == ((change < -0.02).sum(), (change > 0.02).sum())


def test_one_runaway_does_not_decide():
    """Nineteen structures a good deal nearer and one lost far away: the mean rises."""
    before = np.full(20, 3.0)
    after = np.array([*[0.5] * 19, 80.0])
    found = compare(ends(before), ends(after), BASIN)
    assert found.change > 0 and found.log_change < 0
    assert found.verdict == "better" and (found.gained, found.lost) == (19, 0)


def test_a_diverged_structure_never_helps():
    before, after = np.full(10, 3.0), np.full(10, 0.1)
    found = compare(ends(before), ends(after, diverged=range(10)), BASIN)
    assert found.verdict == "undecided" and found.gained == found.better == 0
    found = compare(ends(after), ends(after, diverged=range(10)), BASIN)
    assert found.lost == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_far_away(bad):
    found = compare(ends([1.0] * 8), ends([*[1.0] * 7, bad]), BASIN)
    assert (found.worse, found.lost) == (1, 1) and math.isfinite(found.log_high)


def test_the_same_model_is_undecided():
    found = compare(ends([1.0, 2.0, 3.0]), ends([1.0, 2.0, 3.0]), BASIN)
    assert found.verdict == "undecided" and found.needed == math.inf


@pytest.mark.parametrize(("count", "verdict"), [(1, "undecided"), (5, "undecided"), (6, "better")])
def test_few_structures_decide_nothing(count, verdict):
    assert compare(ends([3.0] * count), ends([0.1] * count), BASIN).verdict == verdict


def test_how_many_structures_would_show_a_change():
    """That many more of the same kind do show it, and a tenth of them do not."""
    rng = np.random.default_rng(1)
    logs = rng.normal(0.0, 1.0, 100)
    logs += -0.1 - logs.mean()
    found = compare(ends(np.full(100, 20.0)), ends(np.expm1(np.log1p(20.0) + logs)), BASIN)
    assert found.verdict == "undecided" and "shows with about" in str(found)
    many = np.tile(logs, math.ceil(1.3 * found.needed / 100))
    more = compare(ends(np.full(len(many), 20.0)), ends(np.expm1(np.log1p(20.0) + many)), BASIN)
    assert more.verdict == "better"


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=2, max_size=20),
    st.randoms(use_true_random=False),
)
def test_the_order_of_structures_does_not_matter(pairs, random):
    before, after = (ends(values) for values in zip(*pairs, strict=True))
    found = compare(before, after, BASIN)
    random.shuffle(before)
    random.shuffle(after)
    assert compare(before, after, BASIN) == found
    back = compare(after, before, BASIN)
    assert (back.better, back.worse, back.gained, back.lost) == (
        found.worse,
        found.better,
        found.lost,
        found.gained,
    )


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([], [])])
def test_other_structures_are_refused(one, other):
    with pytest.raises(ValueError, match="the same structures to compare"):
        compare(ends(one), ends(other), BASIN)
