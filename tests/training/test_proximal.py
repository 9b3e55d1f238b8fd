"""The proximal term, and a decoder's update beside the model's."""

import math

import pytest
import torch

from fairchem_gdeq.relax.decoder import StepDecoder
from fairchem_gdeq.training.proximal import Proximal
from fairchem_gdeq.training.steps import LearntStep, update


def test_it_is_a_gradient_step_of_its_term_after_the_optimizers():
    weight, still = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.ones(1))
    still.requires_grad_(False)
    optimizer = torch.optim.SGD([weight, still], lr=0.1)
    pull, base = Proximal([weight, still], optimizer, 2.0), weight.detach().clone()
    expected = base.clone()
    for gradient in ([1.0, 0.0], [0.5, -1.0], [0.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        assert update([weight, still], optimizer, 1, proximal=pull).applied
        expected = expected - 0.1 * torch.tensor(gradient)
        expected = expected - 0.1 * 2.0 * (expected - base)
    torch.testing.assert_close(weight.detach(), expected)
    assert still.item() == 1.0


def test_nothing_is_pulled_without_an_update():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    pull = Proximal([weight], optimizer, 2.0)
    with torch.no_grad():
        weight += 1.0
    weight.grad = torch.tensor([math.nan])
    assert not update([weight], optimizer, 1, proximal=pull).applied
    assert weight.item() == 2.0


@pytest.mark.parametrize("strength", [-1.0, 2.5, math.nan])
def test_a_strength_beyond_the_base_is_refused(strength):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    with pytest.raises(ValueError, match=f"proximal={strength}: expected a number from 0 to"):
        Proximal([weight], optimizer, strength)


def test_a_decoder_has_the_step_of_its_own_optimizer_and_is_not_clipped():
    weight, decoder = torch.nn.Parameter(torch.ones(1)), StepDecoder(3)
    parameters = list(decoder.parameters())
    step = LearntStep(parameters, torch.optim.SGD(parameters, lr=1.0), None)
    before = [p.detach().clone() for p in parameters]
    weight.grad = torch.full((1,), 10.0)
    for p in parameters:
        p.grad = torch.full_like(p, 5.0)
    done = update([weight], torch.optim.SGD([weight], lr=1.0), 1, clip=1.0, step=step)
    assert done.applied and float(done.norm) == pytest.approx(10.0)
    assert weight.item() == pytest.approx(0.0, abs=1e-6)
    for p, was in zip(parameters, before, strict=True):
        torch.testing.assert_close(p.detach(), was - 5.0)
    weight.grad, parameters[0].grad = torch.ones(1), torch.full_like(parameters[0], math.inf)
    assert not update([weight], torch.optim.SGD([weight], lr=1.0), 1, step=step).applied
