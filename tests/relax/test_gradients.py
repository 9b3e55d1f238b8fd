"""DESIGN section 3's truth tests: gradients against central differences, dense algebra, autograd."""

import pytest
import torch

from fairchem_gdeq.relax import GMRES, LBFGS, Identity, Neumann, delta_q, make_signal, solve
from fairchem_gdeq.relax.guidance import guidance_by_stored_graph, guidance_by_sweep, rollout
from fairchem_gdeq.relax.segments import segment_max_norm
from fairchem_gdeq.testing.fields import (
    central_differences,
    dense_jacobian,
    grads,
    random_batch,
    zero,
)

CASES = [
    ("site", {}),
    ("site", {"fixed": [0, 4]}),
    ("site", {"cap": 0.05}),
    ("site", {"remove_drift": True}),
    ("pair", {}),
    ("pair", {"fixed": [1, 2, 6]}),
    ("pair", {"remove_drift": False}),
]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_vjp_matches_central_differences(kind, options):
    operator, x, _ = random_batch(kind, [4, 1, 5], **options)
    lam = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    numeric = central_differences(operator, x, lam, 1e-6)
    numeric[~operator.structures.free] = 0
    assert relative(operator.vjp(x, lam), numeric) < 1e-6


def largest_forces(operator, x):
    s = operator.structures
    return segment_max_norm(operator.forces(x).detach(), s.batch, s.count)


def test_vjp_parameter_gradient_matches_central_differences():
    operator, x, _ = random_batch("site", [4, 3])
    lam = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    operator.vjp(x, lam, accumulate=True)
    analytic = grads(operator)
    numeric, h = [], 1e-6
    with torch.no_grad():
        for p in operator.field.parameters():
            for i in range(p.numel()):
                p.view(-1)[i] += h
                up = (operator(x) * lam).sum()
                p.view(-1)[i] -= 2 * h
                down = (operator(x) * lam).sum()
                p.view(-1)[i] += h
                numeric.append((up - down) / (2 * h))
    assert relative(analytic, torch.stack(numeric)) < 1e-6


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("mask", [False, True])
def test_sweep_equals_stored_graph(kind, options, mask):
    operator, x, target = random_batch(kind, [4, 2, 5], **options)
    # As many eV/Angstrom as the calmest structure has left after some steps.
    fmax = 1.01 * float(largest_forces(operator, rollout(operator, x, 9).positions).min()) * mask
    loss = lambda z: delta_q(z, target, operator.structures, operator.pin)  # noqa: E731
    results = []
    for guide in (guidance_by_sweep, guidance_by_stored_graph):
        zero(operator)
        path, losses, total = guide(operator, x, 25, loss, 0.7, fmax)
        results.append((grads(operator), losses, path, total))
    assert relative(results[0][0], results[1][0]) < 1e-10
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2].positions, results[1][2].positions)
    assert results[0][3] == pytest.approx(results[1][3], rel=1e-12)
    if mask:
        assert results[0][2].settled.any(), "the masked branch was not reached"


def test_masked_structure_has_the_gradient_of_its_own_shorter_rollout():
    operator, x, target = random_batch("site", [4, 3])
    for size, keep in ((4, [True, False]), (3, [False, True])):
        mask = torch.tensor(keep)
        alone, atoms = operator.select(mask), operator.structures.atoms_of(mask)
        loss = lambda z, a=atoms, o=alone: delta_q(z, target[a], o.structures, o.pin)  # noqa: E731
        zero(operator)
        path, _, _ = guidance_by_sweep(alone, x[atoms], 60, loss, 1.0, fmax=0.1)
        masked = grads(operator)
        assert path.settled.all() and len(path.steps) < 60
        zero(operator)
        guidance_by_stored_graph(alone, x[atoms], len(path.steps), loss, 1.0)
        assert relative(masked, grads(operator)) < 1e-10, size


def test_learnable_alpha_gets_its_gradient():
    gradients = []
    for guide in (guidance_by_sweep, guidance_by_stored_graph):
        alpha = torch.tensor(0.1, requires_grad=True)
        operator, x, target = random_batch("site", [4], alpha=alpha)
        loss = lambda z, o=operator, t=target: delta_q(z, t, o.structures, o.pin)  # noqa: E731
        guide(operator, x, 10, loss, 1.0)
        gradients.append(alpha.grad.clone())
    assert gradients[0] == pytest.approx(float(gradients[1]), rel=1e-10)
    assert gradients[0] != 0


def relaxed(kind, sizes, **options):
    operator, x, target = random_batch(kind, sizes, **options)
    found = solve(operator, x, LBFGS(stiffness=3.0, softest=None), fmax=1e-10, max_steps=2000)
    assert found.converged.all()
    return operator, found.positions, target


PAIR_FIXED = [0, 1, 2, 4, 5, 6, 9, 10, 11]  # three in each of [4, 5, 6]: no rotation is left


@pytest.mark.parametrize(
    ("kind", "options"),
    [("site", {}), ("site", {"fixed": [0, 5]}), ("pair", {"fixed": PAIR_FIXED})],
)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_adjoint_matches_dense_solve(kind, options, damping):
    operator, x, target = relaxed(kind, [4, 5, 6], **options)
    s = operator.structures
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)) * s.free[:, None]
    free = s.free.repeat_interleave(3)
    jacobian = dense_jacobian(operator, x)[free][:, free]
    matrix = (1 + damping) * torch.eye(len(jacobian)) - jacobian.T
    dense = torch.linalg.solve(matrix, g.flatten()[free])
    for kind_of in (GMRES, Neumann):
        answer = kind_of(tol=1e-12, max_vjps=2000, damping=damping)(operator, x, g)
        assert answer.converged.all()
        assert relative(answer.u.flatten()[free], dense) < 1e-8
        assert (answer.u[~s.free] == 0).all()


def test_damping_bounds_what_a_soft_mode_does_to_the_adjoint():
    """A site held by almost nothing: alpha k = 1e-6. Exact u = g / 1e-6; damped, g / (mu + 1e-6)."""
    operator, x, _ = random_batch("site", [1], alpha=1e-6)
    x = solve(operator, x, LBFGS(stiffness=3.0, softest=None), 1e-12, 2000).positions
    jacobian = dense_jacobian(operator, x)
    assert torch.linalg.eigvals(jacobian).real.max() > 1 - 1e-4
    g = torch.ones_like(x)
    exact = GMRES(tol=1e-9, max_vjps=50, damping=0.0)(operator, x, g)
    damped = GMRES(tol=1e-9, max_vjps=50, damping=0.1)(operator, x, g)
    assert exact.u.norm() > 1e3 * g.norm()
    assert damped.u.norm() <= g.norm() / 0.1 * 1.01


def test_adjoint_in_the_complement_of_rigid_shifts():
    """A pinned pair field: I - J_G is singular; the least-norm dense solution is the reference."""
    operator, x, target = relaxed("pair", [1, 2, 3])
    s = operator.structures
    x = x + 0  # clusters of up to three atoms also rotate freely; ask in the range of (I - J)^T
    matrix = torch.eye(3 * len(x)) - dense_jacobian(operator, x)
    seed = torch.randn(3 * len(x), generator=torch.Generator().manual_seed(5))
    g = (matrix.T @ seed).view(-1, 3)
    answer = GMRES(tol=1e-11, max_vjps=300, damping=0.0)(operator, x, g)
    assert answer.converged.all()
    assert relative(matrix.T @ answer.u.flatten(), g.flatten()) < 1e-8
    sums = torch.zeros(s.count, 3).index_add(0, s.batch, answer.u)
    assert sums.abs().max() < 1e-10


def test_adjoint_warm_start_costs_nothing_at_the_answer():
    operator, x, target = relaxed("site", [4, 3, 5])
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    cold = GMRES(tol=1e-8, max_vjps=100, damping=0.0)(operator, x, g)
    warm = GMRES(tol=1e-7, max_vjps=100, damping=0.0)(operator, x, g, guess=cold.u)
    assert warm.converged.all() and (warm.vjps == 1).all() and (cold.vjps > 3).all()


def test_restarted_gmres_still_converges():
    operator, x, _ = relaxed("site", [4, 3, 5])
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    full = GMRES(tol=1e-10, max_vjps=200, damping=0.0)(operator, x, g)
    short = GMRES(tol=1e-10, max_vjps=400, restart=6, damping=0.0)(operator, x, g)
    assert short.converged.all() and relative(short.u, full.u) < 1e-8
    assert (short.vjps > full.vjps).any()


def test_failed_adjoint_is_reported_and_isolated():
    operator, x, _ = relaxed("site", [4, 3, 5])
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    answer = GMRES(tol=1e-10, max_vjps=3, damping=0.0)(operator, x, g)
    assert not answer.converged.any() and (answer.vjps == 3).all()
    assert (answer.residual > 1e-10).all()


def test_neumann_and_identity():
    operator, x, _ = relaxed("site", [4, 3], alpha=0.3)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    exact = GMRES(tol=1e-12, max_vjps=100, damping=0.0)(operator, x, g)
    series = Neumann(tol=1e-10, max_vjps=2000, damping=0.0)(operator, x, g)
    assert series.converged.all() and relative(series.u, exact.u) < 1e-8
    assert torch.equal(Identity()(operator, x, g).u, g)
    # The same equilibrium with a step that does not contract: the series fails and says so.
    operator, x, _ = relaxed("site", [4, 3], alpha=5.0)
    assert not Neumann(tol=1e-10, max_vjps=200, damping=0.0)(operator, x, g).converged.any()
    assert GMRES(tol=1e-10, max_vjps=100, damping=0.0)(operator, x, g).converged.all()


@pytest.mark.parametrize("kind", ["site", "pair"])
def test_implicit_gradient_is_the_limit_of_bptt(kind):
    options = {"fixed": PAIR_FIXED} if kind == "pair" else {}
    operator, x, target = random_batch(kind, [4, 5, 6], alpha=0.2, **options)
    # Picard follows the very path that BPTT unrolls, so both end at one fixed point of several.
    method = {
        "solver": "picard",
        "fmax": 1e-9,
        "max_steps": 3000,
        "adjoint": GMRES(tol=1e-10, max_vjps=300, damping=0.0),
    }
    zero(operator)
    report = make_signal("implicit", **method)(operator, x, target)
    assert report.contributing.all()
    at_equilibrium = grads(operator)
    zero(operator)
    unrolled = {"max_unroll": 3000, "fmax": 0.0}
    long = make_signal("bptt", **unrolled)(operator, x, target)
    assert torch.allclose(long.guided, report.relaxed, rtol=1e-7)
    assert relative(at_equilibrium, grads(operator)) < 1e-5


def test_gdeq_gradient_is_the_sum_of_its_decoupled_parts():
    operator, x, target = random_batch("site", [4, 3, 2])
    method = {
        "horizon": 5,
        "lambda_guide": 0.4,
        "lambda_eq": 0.9,
        "fmax": 1e-9,
        "max_steps": 2000,
        "adjoint": GMRES(tol=1e-10, damping=0.0),
    }
    total = {}
    for name in ("gdeq", "truncated_bptt", "implicit"):
        zero(operator)
        start = x
        if name == "implicit":  # from the hand-off state, to reach the same equilibrium
            start = total["handoff"]
        report = make_signal(name, **method)(operator, start, target)
        total[name] = grads(operator)
        if name == "gdeq":
            total["handoff"], total["loss"] = report.handoff, report.loss
            expected = 0.4 * report.guided.mean() + 0.9 * report.relaxed.mean()
            assert report.loss == pytest.approx(float(expected), rel=1e-12)
    assert relative(total["truncated_bptt"] + total["implicit"], total["gdeq"]) < 1e-6
