"""The paper's toy control keeps its shape: implicit alone fails, a short window succeeds."""

from examples.toy_basins import final_error, problem, train


def test_a_short_window_selects_the_basin_and_more_adds_nothing():
    untrained = final_error(*problem(0))
    implicit, short, long = (train(k, seed=0, steps=100) for k in (0, 5, 10))
    assert untrained > 0.9
    assert implicit > 0.8, "training at the fixed point alone moved structures over the barrier"
    assert short < implicit / 3
    assert abs(long - short) < 0.05
