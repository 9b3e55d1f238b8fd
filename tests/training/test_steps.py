"""The optimizer's step: two losses in one, by the formula."""

import math

import pytest
import torch

from fairchem_gdeq.training.steps import Beside, update


def parameters(*values):
    return [torch.tensor(value, requires_grad=True) for value in values]


def step(gradients, others, limit, clip=float("inf")):
    """What a plain descent step of rate 1 takes off, with both gradients given by value."""
    tensors = parameters(*([1.0, 2.0] for _ in gradients))
    before = [p.detach().clone() for p in tensors]
    for p, g in zip(tensors, gradients, strict=True):
        p.grad = None if g is None else torch.tensor(g)

    def differentiate():
        for p, g in zip(tensors, others, strict=True):
            if g is not None:
                p.grad = torch.tensor(g)

    optimizer = torch.optim.SGD(tensors, lr=1.0)
    done = update(tensors, optimizer, 1, clip=clip, beside=Beside(differentiate, limit))
    assert all(p.grad is None for p in tensors)
    return done, [(b - p).tolist() for b, p in zip(before, tensors, strict=True)]


@pytest.mark.parametrize(("limit", "share"), [(10.0, 1.0), (2.0, 0.4), (0.0, 0.0)])
def test_the_signal_is_no_longer_than_its_limit(limit, share):
    """|g_S| = 5 and |g_F| = 1 over all parameters together."""
    done, moved = step([[3.0, 0.0], [0.0, 4.0]], [[0.6, 0.0], [0.8, 0.0]], limit)
    assert done.applied and done.share == pytest.approx(share)
    assert moved[0] == pytest.approx([0.6 + share * 3.0, 0.0])
    assert moved[1] == pytest.approx([0.8, share * 4.0])
    assert float(done.norm) == pytest.approx(math.hypot(*moved[0], *moved[1]))


def test_without_a_limit_the_signal_moves_what_the_forces_leave():
    """As the base's own forces do at first."""
    done, moved = step([[3.0, 0.0]], [[0.0, 0.0]], math.inf)
    assert done.share == 1.0 and moved == [[3.0, 0.0]]


def test_parameters_that_one_loss_alone_reaches():
    done, moved = step([[1.0, 0.0], None, None], [None, [0.0, 2.0], None], 5.0)
    assert moved == [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]] and done.share == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_signal_that_is_not_finite_leaves_the_forces(bad, caplog):
    done, moved = step([[bad, 1.0]], [[0.25, 0.5]], 1.0)
    assert moved == [[0.25, 0.5]] and done.applied and done.share == 0.0
    assert "one of the forces alone" in caplog.text


def test_where_all_structures_are_spared_the_forces_go_on_alone(caplog):
    done, moved = step([None, None], [[0.25, 0.5], None], 1.0)
    assert moved == [[0.25, 0.5], [0.0, 0.0]] and done.applied and done.share == 0.0
    assert not caplog.text


def test_forces_that_are_not_finite_move_nothing(caplog):
    done, moved = step([[1.0, 1.0]], [[math.nan, 0.5]], 1.0)
    assert moved == [[0.0, 0.0]] and not done.applied
    assert "no update in this step" in caplog.text


def test_both_are_clipped_together():
    _, moved = step([[3.0, 0.0]], [[3.0, 0.0]], 1.0, clip=1.5)
    assert moved[0] == pytest.approx([1.5, 0.0], rel=1e-4)


@pytest.mark.parametrize("rate", [math.nan, 1e30])
def test_a_step_that_leaves_the_finite_numbers_ends_the_run(rate):
    """Of a gradient that is finite: by a rate that is no number, or far too long a step."""
    (tensor,) = parameters([1.0, 2.0])
    tensor.grad = torch.tensor([1e10, 1.0])
    optimizer = torch.optim.SGD([tensor], lr=1.0)
    optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(
        ValueError, match=f"weights are not finite .* rate is {rate:g}".replace("+", ".")
    ):
        update([tensor], optimizer, 1)
