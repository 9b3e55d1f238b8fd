"""Momentum and annealing of plain steps: against the recursion written out, autograd and differences."""

import pytest
import torch

from fairchem_gdeq.batching.streams import Stream
from fairchem_gdeq.relax import Descent, Relaxer, delta_q, make_signal
from fairchem_gdeq.relax.guidance import guidance_by_stored_graph, guidance_by_sweep, rollout
from fairchem_gdeq.testing.fields import grads, random_batch, zero
from tests.batching.test_streams import requests
from tests.relax.test_gradients import largest_forces, relative
from tests.relax.test_signals import TIGHT

DESCENTS = [Descent(0.6), Descent(annealing=0.8), Descent(0.4, 0.9)]
CASES = [
    ("site", {}),
    ("site", {"fixed": [0, 4], "cap": 0.05}),
    ("pair", {"fixed": [1, 2, 6]}),
    ("pair", {}),
]


def written_out(operator, x, steps):
    """X_K of the recursion as the paper says it, with its graph."""
    velocity, how = torch.zeros_like(x), operator.descent
    for k in range(steps):
        velocity = how.momentum * velocity + operator.forces(x)
        x = x + operator.displacement(how.annealing**k * velocity)
    return x


def loss_of(operator, target):
    return lambda z: delta_q(z, target, operator.structures, operator.pin)


@pytest.mark.parametrize("descent", DESCENTS)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_gradient_is_that_of_the_recursion(descent, kind, options):
    alpha = torch.tensor(0.1, requires_grad=True)
    operator, x, target = random_batch(kind, [4, 1, 5], **options, alpha=alpha, descent=descent)
    loss, found = loss_of(operator, target), []
    for memory in (0, 10**9):
        zero(operator)
        alpha.grad = None
        path, _, total = guidance_by_sweep(operator, x, 12, loss, 0.7, memory=memory)
        found.append((grads(operator), float(alpha.grad)))
    zero(operator)
    alpha.grad = None
    end = written_out(operator, x, 12)
    torch.testing.assert_close(path.positions, end.detach(), rtol=1e-13, atol=1e-13)
    mean = 0.7 * loss(end).mean()
    mean.backward()
    assert total == pytest.approx(float(mean.detach()), rel=1e-12)
    for gradient, step in found:
        assert relative(gradient, grads(operator)) < 1e-10
        assert step == pytest.approx(float(alpha.grad), rel=1e-10)


@pytest.mark.parametrize("descent", DESCENTS)
def test_the_gradient_matches_central_differences(descent):
    operator, x, target = random_batch("site", [4, 3], descent=descent)
    loss, h = loss_of(operator, target), 1e-6
    guidance_by_sweep(operator, x, 9, loss, 1.0)
    analytic, numeric = grads(operator), []
    with torch.no_grad():
        for p in operator.field.parameters():
            for i in range(p.numel()):
                ends = []
                for move in (h, -2 * h):
                    p.view(-1)[i] += move
                    ends.append(loss(written_out(operator, x, 9)).mean())
                p.view(-1)[i] += h
                numeric.append((ends[0] - ends[1]) / (2 * h))
    assert relative(analytic, torch.stack(numeric)) < 1e-6


@pytest.mark.parametrize("descent", DESCENTS)
@pytest.mark.parametrize("memory", [0, 10**9])
def test_sweep_equals_stored_graph_where_structures_settle(descent, memory):
    operator, x, target = random_batch("site", [4, 2, 5], descent=descent)
    fmax = 1.01 * float(largest_forces(operator, rollout(operator, x, 9).positions).min())
    results = []
    for guide, options in (
        (guidance_by_sweep, {"memory": memory}),
        (guidance_by_stored_graph, {}),
    ):
        zero(operator)
        path, losses, _ = guide(operator, x, 25, loss_of(operator, target), 0.7, fmax, **options)
        results.append((grads(operator), losses, path))
    assert results[0][2].settled.any(), "the masked branch was not reached"
    assert relative(results[0][0], results[1][0]) < 1e-10
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("signal", ["gdeq", "bptt", "truncated_bptt", "coupled"])
@pytest.mark.parametrize("spare", [0.0, 0.3])
def test_a_batch_is_the_mean_of_its_structures(signal, spare):
    """Of those that are left where some are spared, too: their steps are taken out of the sweep."""
    settings = TIGHT | {"max_unroll": 4, "spare": spare, "guidance_memory": "1GB"}
    operator, x, target = random_batch(
        "site", [4, 2, 3], conservative=True, descent=Descent(0.5, 0.9)
    )
    target[:4] = make_signal("implicit", **TIGHT)(operator, x, target).positions[:4] + 0.01
    zero(operator)
    report = make_signal(signal, **settings)(operator, x, target)
    together = grads(operator)
    total = torch.zeros_like(together)
    for k in range(3):
        mask = torch.arange(3) == k
        atoms = operator.structures.atoms_of(mask)
        zero(operator)
        make_signal(signal, **settings)(operator.select(mask), x[atoms], target[atoms])
        if any(p.grad is not None for p in operator.field.parameters()):
            total += grads(operator)
    if spare and signal in ("gdeq", "coupled"):
        assert report.spared.tolist() == [True, False, False]
    torch.testing.assert_close(together, total / 3, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("descent", DESCENTS)
def test_structures_are_relaxed_by_the_steps_that_were_trained(descent):
    """In flight, where each structure is at a stage of its own, and together."""
    operator, x, _ = random_batch("site", [4, 2, 5, 3], conservative=True, descent=descent)
    fmax = 1.01 * float(largest_forces(operator, rollout(operator, x, 4).positions).min())
    relaxer = Relaxer(horizon=7, fmax=fmax, max_steps=0)
    ends = {end.key: end for end in Stream(requests(operator, x), relaxer, 6)}
    path = rollout(operator, x, 7, fmax)
    found = torch.cat([ends[k].positions for k in range(4)])
    assert path.settled.any() and not path.settled.all()
    torch.testing.assert_close(found, path.positions, rtol=1e-13, atol=1e-13)


def test_by_default_the_steps_are_the_operator_itself():
    operator, x, _ = random_batch("site", [4, 3], cap=0.05)
    path = rollout(operator, x, 6)
    for _ in range(6):
        x = operator(x)
    assert torch.equal(path.positions, x) and path.steps[0].before is None


def test_fixed_points_are_those_of_the_operator():
    operator, x, _ = random_batch("site", [4], conservative=True, descent=Descent(0.5))
    path = rollout(operator, x, 500, fmax=1e-9)
    assert path.settled.all()
    assert operator.forces(path.positions).abs().max() < 1e-8


def test_other_descents_are_other_maps():
    operator, _, _ = random_batch("site", [4])
    other, _, _ = random_batch("site", [4], descent=Descent(0.5))
    with pytest.raises(ValueError, match=r"momentum=0\.5"):
        operator.join([other])


@pytest.mark.parametrize(
    ("key", "value"),
    [("momentum", -0.1), ("momentum", 1.0), ("annealing", 0.0), ("annealing", 1.1)],
)
def test_a_descent_that_cannot_be_meant_is_named(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}: expected a number"):
        Descent(**{key: value})
