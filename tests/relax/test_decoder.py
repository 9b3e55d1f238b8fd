"""The step decoder: its gradient through the rollout, what leaves it alone, and what tells it apart."""

import pytest
import torch

from fairchem_gdeq.batching.streams import Stream
from fairchem_gdeq.relax import Descent, Relaxer, delta_q
from fairchem_gdeq.relax.decoder import StepDecoder
from fairchem_gdeq.relax.guidance import guidance_by_sweep, rollout
from fairchem_gdeq.testing.fields import grads, random_batch, structures, zero
from tests.batching.test_streams import requests
from tests.relax.test_gradients import relative


def awake(width=5):
    """A decoder that does not begin as 1."""
    decoder = StepDecoder(width)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in decoder.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return decoder


def written_out(operator, x, steps):
    velocity, how = torch.zeros_like(x), operator.descent
    for k in range(steps):
        forces = operator.forces(x)
        velocity = how.momentum * velocity + forces
        size = operator.alpha * how.annealing**k * how.decoder(x, forces, operator.structures)
        x = x + size[operator.structures.batch, None] * velocity
    return x


@pytest.mark.parametrize("descent", [{}, {"momentum": 0.4, "annealing": 0.9}])
@pytest.mark.parametrize("memory", [0, 10**9])
def test_the_gradient_is_that_of_the_recursion(descent, memory):
    decoder = awake()
    descent = Descent(**descent, decoder=decoder)
    operator, x, target = random_batch("site", [4, 1, 5], fixed=[1, 6], descent=descent)
    loss = lambda z: delta_q(z, target, operator.structures, operator.pin)  # noqa: E731
    zero(operator)
    path, _, _ = guidance_by_sweep(operator, x, 8, loss, 0.7, memory=memory)
    found, own = grads(operator), [p.grad.clone() for p in decoder.parameters()]
    zero(operator)
    decoder.zero_grad()
    end = written_out(operator, x, 8)
    torch.testing.assert_close(path.positions, end.detach(), rtol=1e-12, atol=1e-12)
    (0.7 * loss(end).mean()).backward()
    assert relative(found, grads(operator)) < 1e-10
    for mine, p in zip(own, decoder.parameters(), strict=True):
        assert p.grad.norm() > 0
        torch.testing.assert_close(mine, p.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_matches_central_differences():
    decoder, h = awake(3), 1e-6
    operator, x, target = random_batch("site", [4, 3], descent=Descent(decoder=decoder))
    loss = lambda z: delta_q(z, target, operator.structures, operator.pin)  # noqa: E731
    guidance_by_sweep(operator, x, 5, loss, 1.0)
    numeric = []
    with torch.no_grad():
        for p in decoder.parameters():
            for i in range(p.numel()):
                ends = []
                for move in (h, -2 * h):
                    p.view(-1)[i] += move
                    ends.append(loss(written_out(operator, x, 5)).mean())
                p.view(-1)[i] += h
                numeric.append((ends[0] - ends[1]) / (2 * h))
    analytic = torch.cat([p.grad.flatten() for p in decoder.parameters()])
    assert relative(analytic, torch.stack(numeric)) < 1e-6


def test_it_begins_as_alpha_itself():
    plain, x, _ = random_batch("site", [4, 3])
    operator, _, _ = random_batch("site", [4, 3], descent=Descent(decoder=8))
    torch.testing.assert_close(rollout(operator, x, 6).positions, rollout(plain, x, 6).positions)


def test_rigid_motions_images_and_the_order_of_atoms_change_nothing():
    decoder, generator = awake(), torch.Generator().manual_seed(1)
    s = structures([6, 4], length=4.0)
    x, forces = (torch.randn(10, 3, generator=generator) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    expected = decoder(x, forces, s)
    assert (expected - 1).abs().min() > 1e-3 and expected[0] != expected[1]
    order = torch.tensor([3, 1, 0, 2, 5, 4, 9, 8, 6, 7])
    moved = x + 1.7
    moved[2] += torch.tensor([4.0, 0.0, -8.0])  # lattice vectors
    mixed = structures([6, 4], length=4.0)
    object.__setattr__(mixed, "masses", s.masses[order])
    torch.testing.assert_close(decoder(moved[order], forces[order], mixed), expected)
    free = structures([6, 4])
    torch.testing.assert_close(decoder(x @ turn.T, forces @ turn.T, free), decoder(x, forces, free))


def test_structures_in_flight_have_steps_of_their_own():
    operator, x, _ = random_batch("site", [4, 2, 5], descent=Descent(0.3, 0.9, awake()))
    way = Relaxer(horizon=5, fmax=0.0, max_steps=0)
    with torch.no_grad():
        ends = {end.key: end for end in Stream(requests(operator, x), way, 7)}
        found = torch.cat([ends[k].positions for k in range(3)])
        torch.testing.assert_close(found, rollout(operator, x, 5).positions)


def test_settings_with_other_weights_are_printed_otherwise():
    assert repr(Descent(decoder=awake())) == repr(Descent(decoder=awake()))
    assert repr(Descent(decoder=awake())) != repr(Descent(decoder=StepDecoder(5)))


def test_a_structure_without_free_atoms_has_a_finite_step():
    s = structures([3, 2], fixed=[0, 1, 2])
    assert torch.isfinite(awake()(torch.randn(5, 3), torch.zeros(5, 3), s)).all()


def test_a_width_that_cannot_be_meant_is_named():
    with pytest.raises(ValueError, match="width=-1 of a step decoder"):
        Descent(decoder=-1)
