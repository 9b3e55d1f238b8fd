"""The simulation of processes that wait for each other, where the answer is known."""

import numpy as np
import pytest

from benchmarks.many_ranks import solves, wait


def test_equal_costs_and_a_single_process_wait_for_nobody():
    rng = np.random.default_rng(0)
    assert wait(np.array([7.0]), 16, 3, 10, rng) == 1.0
    assert wait(np.array([1.0, 9.0]), 1, 2, 10, rng) == 1.0


def test_of_two_processes_with_two_costs():
    """Costs 1 and 3: half of the steps are uneven, and then the slower one takes 3 over 2."""
    found = wait(np.array([1.0, 3.0]), 2, 1, 20_000, np.random.default_rng(0))
    assert found == pytest.approx(1.25, abs=0.01)


def test_solves_are_those_of_the_slabs():
    found = solves(0)
    assert len(found) == 3 * 61 and (found > 0).all()
