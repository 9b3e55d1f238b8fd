"""A compiled backbone is the same function with the same derivatives (here without a C++ compiler)."""

import copy

import pytest
import torch

from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax.linearised import Linearised
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.testing.fairchem2.backbones import model, structures, tasks
from fairchem_gdeq.testing.precision import double_precision

SAME = {"rtol": 1e-10, "atol": 1e-12}


SLOW = [  # a minute or two each, without a C++ compiler
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("eSEN direct (OC25)", "UMA, mixture of experts")
]


@pytest.fixture(scope="module", params=["ADAPT", *SLOW])
def pair(request):
    """Operators of a model and of its compiled copy, on a number of structures."""
    name = request.param
    torch.compiler.reset()
    with double_precision():
        data = small.batch(structures(name))
        plain = model(name, True, data)
        compiled = copy.deepcopy(plain)
        compile_backbone(compiled, backend="aot_eager")

        def operators(count):
            batch = small.batch(structures(name, 3)[:count])
            given = [IS2RS().operator(each, tasks(name), batch) for each in (plain, compiled)]
            return *given, batch.pos

        yield operators


@pytest.mark.parametrize("count", [2, 3, 1])
def test_forces_and_derivatives_are_those_of_the_model(pair, count):
    plain, compiled, x = pair(count)
    lam = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled.forces(x), plain.forces(x), **SAME)
    gradients = []
    for operator in (plain, compiled):
        operator.field.model.zero_grad()
        found = operator.vjp(x, lam, accumulate=True)
        learnt = [p.grad for p in operator.field.model.parameters() if p.grad is not None]
        gradients.append([found, *learnt])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-10)


def test_one_linearisation_serves_all_products(pair):
    plain, compiled, x = pair(2)
    linear = Linearised.at(compiled, x)
    for seed in range(3):
        lam = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(linear.vjp(x, lam), plain.vjp(x, lam), **SAME)
    assert linear.graph.reusable and linear.graph.served == 3
