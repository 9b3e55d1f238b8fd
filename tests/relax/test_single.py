"""The method in the models' own precision: single, in which the other tests here are not."""

import pytest
import torch

from fairchem_gdeq.relax import ADJOINTS, SOLVERS, make_signal
from fairchem_gdeq.testing.fields import grads, random_batch, zero
from tests.relax.test_gradients import relative


@pytest.fixture(autouse=True)
def _single(_precision):
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("adjoint", ["gmres", "neumann"])
@pytest.mark.parametrize("guessed", [False, True])
def test_an_adjoint_solves_its_system(adjoint, guessed):
    """((1 + mu) I - J_G^T) u = g, with one structure of which nothing is asked."""
    operator, x, target = random_batch("site", [4, 3, 5], alpha=0.3)
    g = torch.where((operator.structures.batch == 1)[:, None], 0.0, target - x)
    solver = ADJOINTS[adjoint](tol=1e-4, max_vjps=200, damping=0.1)
    answer = solver(operator, x, g, 0.1 * target if guessed else None)
    assert answer.u.dtype == torch.float32
    assert answer.converged.all()
    left = 1.1 * answer.u - operator.vjp(x, answer.u)
    assert relative(left, g) < 2e-4


@pytest.mark.parametrize("adjoint", ["gmres", "neumann"])
def test_a_guess_that_is_not_finite_is_left(adjoint):
    operator, x, target = random_batch("site", [4, 3], alpha=0.3)
    guess = torch.where((operator.structures.batch == 1)[:, None], torch.nan, target)
    solver = ADJOINTS[adjoint](tol=1e-4, max_vjps=200, damping=0.1)
    assert solver(operator, x, target - x, guess).converged.all()


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_gdeq_has_the_gradient_of_the_default_solvers(solver, adjoint):
    """Up to their tolerances; a Jacobian-free one to its own approximation."""
    found = []
    for names in (("lbfgs", "gmres"), (solver, adjoint)):
        operator, x, target = random_batch("site", [4, 3, 2], alpha=0.3, conservative=True)
        method = dict(zip(("solver", "adjoint"), names, strict=True))
        report = make_signal("gdeq", horizon=5, fmax=1e-3, max_steps=500, **method)(
            operator, x, target
        )
        assert report.contributing.all()
        found.append(grads(operator))
        zero(operator)
    assert relative(*found) < (0.5 if adjoint == "identity" else 1e-2)
