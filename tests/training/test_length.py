"""Where in a run one goes on that is longer, or has other ranks, than it had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.training.length import Length

STEPS = st.integers(1, 10_000)


def test_a_longer_run_keeps_what_it_was_begun_with():
    longer = Length(6, 50).going_on(Length(3, 100))
    assert longer == Length(3, 50) and longer.total == 150
    assert Length(**longer.state()) == longer


@given(before=STEPS, now=STEPS, share=st.floats(0, 1, exclude_max=True))
def test_other_ranks_are_at_the_same_structures_of_an_epoch(before, now, share):
    done = int(share * before)
    moved = Length(1, now).moved(done, Length(1, before))
    assert 0 <= moved < now
    assert moved / now == pytest.approx(done / before, abs=1 / now)
    assert Length(1, before).moved(done, Length(1, before)) == done
