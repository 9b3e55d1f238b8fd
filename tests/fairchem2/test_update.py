"""The trainer's update on gradients that are given: alpha, ranks, what is not finite."""

from types import SimpleNamespace

import pytest
import torch

from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.training import steps


def unit(alpha=0.05, alpha_lr=10.0):
    """What ``GDEQTrainer._update`` reads of a trainer: a model of one weight, and a learnt alpha."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    step = torch.tensor(alpha, requires_grad=True)
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        alpha=step,
        learnt=[step],
        decoder=None,
        proximal=None,
        alpha_optimizer=torch.optim.Adam([step], lr=alpha_lr),
        is2rs=SimpleNamespace(alpha=alpha),
        clip_grad_norm=None,
        ema_model=None,
    )


def update(found, weight, alpha, count=3):
    found.model.weight.grad = torch.full((1, 1), weight)
    found.alpha.grad = torch.tensor(alpha)
    return GDEQTrainer._update(found, count)


def test_a_learnt_alpha_stays_positive_and_can_come_back():
    """With this rate the first step alone would make it -9.95."""
    found = unit()
    for _ in range(3):
        assert update(found, 0.0, 1.0).applied
        assert found.alpha.item() == pytest.approx(0.0005)
    for _ in range(40):
        update(found, 0.0, -1.0)
    assert found.alpha.item() > 0.05


def test_a_learnt_alpha_within_bounds_is_adams():
    found, plain = unit(alpha_lr=0.001), torch.tensor(0.05, requires_grad=True)
    adam = torch.optim.Adam([plain], lr=0.001)
    for gradient in (1.0, -0.2, 0.7):
        update(found, 0.0, gradient)
        plain.grad = torch.tensor(gradient)
        adam.step()
    assert found.alpha.item() == plain.item() != 0.05


@pytest.mark.parametrize(("weight", "alpha"), [(float("nan"), 1.0), (1.0, float("nan"))])
def test_nothing_moves_on_a_gradient_that_is_not_finite(weight, alpha):
    found = unit()
    assert not update(found, weight, alpha).applied
    assert found.model.weight.item() == 1.0 and found.alpha.item() == pytest.approx(0.05)
    assert found.alpha.grad is None and found.model.weight.grad is None


def test_gradients_are_averaged_before_they_are_clipped(monkeypatch):
    """With the number of this rank's structures."""
    counts = []

    def average(parameters, count):
        counts.append(count)
        found.model.weight.grad *= 10
        return [p for p in parameters if p.grad is not None]

    monkeypatch.setattr(steps, "average_over_ranks", average)
    found = unit()
    found.clip_grad_norm = 0.5
    done = update(found, 1.0, 0.0, count=7)
    assert done.applied and counts == [7]
    assert float(done.norm) == pytest.approx(10.0)
    assert found.model.weight.item() == pytest.approx(0.5)
