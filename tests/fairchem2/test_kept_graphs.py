"""Graphs that serve more than once, or later than at once, on fairchem's models: the same numbers."""

import pytest
import torch

from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import GMRES, make_signal
from fairchem_gdeq.relax.guidance import rollout, sweep
from fairchem_gdeq.relax.linearised import Linearised
from fairchem_gdeq.testing.fairchem2 import backbones, small

NAMES = [
    "eSEN direct (OC25)",
    "eSEN direct, checkpointed",
    "UMA, mixture of experts",
    "UMA, mixture, checkpointed",
]


def problem(name):
    data = small.batch(backbones.structures(name, 4), double=False)
    model = backbones.model(name, False, data)
    return model, IS2RS(alpha=0.05, cap=0.05).operator(model, backbones.tasks(name), data), data.pos


def taken(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_one_linearisation(name):
    model, operator, x = problem(name)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(x.shape, generator=generator)
    solver, answers = GMRES(tol=1e-3, max_vjps=12, damping=0.5), []
    for each in (operator, Linearised.at(operator, x)):
        answer = solver(each, x, g)
        grad = each.vjp(x, g, accumulate=True)
        answers.append((answer.u, grad, taken(model)))
    for plain, kept in zip(*answers, strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("name", [name for name in NAMES if "checkpointed" not in name])
def test_kept_graphs(name):
    """Structures leave on the way, so that later evaluations are of fewer."""
    model, operator, x = problem(name)
    calm = rollout(operator, x, 3)
    s = operator.structures
    last = operator.forces(calm.positions).detach().norm(dim=-1)
    each = torch.stack([last[s.batch == k].max() for k in range(s.count)])
    fmax = 0.5 * float(each.sort().values[:2].sum())  # between the calmest and the next
    found = []
    for memory in (0, 10**10):
        path = rollout(operator, x, 6, fmax, memory)
        assert path.settled.any() and not path.settled.all()
        assert bool(path.steps[-1].kept) == (memory > 0)
        sweep(path, torch.ones_like(x))
        found.append(taken(model))
    torch.testing.assert_close(
        found[1], found[0], rtol=1e-3, atol=1e-5 * float(found[0].abs().max())
    )


@pytest.mark.parametrize("name", [name for name in NAMES if "checkpointed" in name])
def test_a_model_that_evaluates_parts_again_is_refused(name):
    """A mixture of experts remembers the sizes of the latest batch: an earlier graph is not its own."""
    _, operator, x = problem(name)
    signal = make_signal("truncated_bptt", horizon=1, guidance_memory="1GB")
    with pytest.raises(
        ValueError, match=r"guidance_memory='1GB': .*activation_checkpointing: false"
    ):
        signal(operator, x, x)
    assert not problem(NAMES[0])[1].field.recomputes
