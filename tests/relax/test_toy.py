"""The paper's toy control keeps its shape: implicit alone fails, a short window succeeds."""

import torch

from examples.toy_basins import Wells, final_error, problem, train
from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax import ForceField, Picard, Relaxer, solve


def test_a_short_window_selects_the_basin_and_more_adds_nothing():
    untrained = final_error(*problem(0))
    implicit, short, long = (train(k, seed=0, steps=100) for k in (0, 5, 10))
    assert untrained > 0.9
    assert implicit > 0.8, "training at the fixed point alone moved structures over the barrier"
    assert short < implicit / 3
    assert abs(long - short) < 0.05


def test_its_field_is_complete():
    """The README points to it for a field of one's own: all members, and a stream that joins them."""
    wanted = {name for name in vars(ForceField) if not name.startswith("_")} | {"__call__"}
    assert all(hasattr(Wells, name) for name in wanted), wanted
    operator, start, _ = problem(0, count=6)
    together = solve(operator, start, Picard(), 1e-4, 500)
    masks = torch.eye(6, dtype=torch.bool)
    requests = [Request(k, operator.select(m), start[m]) for k, m in enumerate(masks)]
    way = Relaxer(0, Picard(), 1e-4, 500)
    outcomes = {end.key: end for end in Stream(requests, way, 4)}
    assert together.converged.all() and all(end.converged for end in outcomes.values())
    for k, mask in enumerate(masks):
        torch.testing.assert_close(outcomes[k].positions, together.positions[mask])
