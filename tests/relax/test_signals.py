"""Training signals as a whole: what is dropped, what is counted, what may never leak."""

import pytest
import torch

from fairchem_gdeq.relax import GMRES, SIGNALS, LogDeltaQ, Operator, make_signal
from fairchem_gdeq.testing.fields import SiteField, grads, random_batch, structures, zero
from tests.relax.test_solvers import Broken

OF_STRUCTURES = [name for name in SIGNALS if name != "ft_static"]  # which has no gradient by them
OF_PATHS = [name for name in OF_STRUCTURES if name != "direct"]
TIGHT = {
    "horizon": 4,
    "fmax": 1e-8,
    "max_steps": 2000,
    "adjoint": GMRES(tol=1e-9, max_vjps=200, damping=0.0),
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("solver", "newton", "lbfgs, picard"),
        ("loss", "mae", "delta_q"),
        ("adjoint", "cg", "gmres, identity, neumann"),
        ("guidance_gradient", "checkpoint", "sweep, stored_graph"),
        ("horizon", -1, ">= 0"),
        ("fmax", -0.1, ">= 0"),
        ("spare", -0.1, ">= 0"),
        ("spare", float("nan"), ">= 0"),
    ],
)
def test_bad_settings_are_named(key, value, expected):
    with pytest.raises(ValueError, match=expected) as error:
        make_signal("gdeq", **{key: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize("signal", OF_STRUCTURES)
def test_batch_gradient_is_the_mean_of_single_ones(signal):
    operator, x, target = random_batch("site", [4, 2, 3], conservative=True)
    zero(operator)
    report = make_signal(signal, **TIGHT)(operator, x, target)
    together, losses = grads(operator), report.loss
    total, single = torch.zeros_like(together), 0.0
    for k in range(3):
        mask = torch.arange(3) == k
        atoms = operator.structures.atoms_of(mask)
        zero(operator)
        single += make_signal(signal, **TIGHT)(operator.select(mask), x[atoms], target[atoms]).loss
        total += grads(operator)
    torch.testing.assert_close(together, total / 3, rtol=1e-6, atol=1e-9)
    assert losses == pytest.approx(single / 3, rel=1e-6)


@pytest.mark.parametrize("signal", OF_STRUCTURES)
def test_what_ends_right_is_not_differentiated(signal):
    """The gradient is that of the other structures, in the mean over all, and the spared cost none."""
    operator, x, target = random_batch("site", [4, 2, 3], conservative=True)
    settings = TIGHT | {"max_unroll": 3}
    whole = make_signal(signal, **settings)(operator, x, target)
    ends = torch.where(whole.relaxed.isnan(), whole.guided, whole.relaxed)
    spare = float(ends.sort().values[:2].mean())  # between the nearest and the second
    zero(operator)
    report = make_signal(signal, **settings, spare=spare)(operator, x, target)
    found = grads(operator)
    assert report.spared.tolist() == (ends < spare).tolist() and int(report.spared.sum()) == 1
    torch.testing.assert_close(report.relaxed, whole.relaxed, equal_nan=True)
    assert (report.vjps == 0).tolist() == report.spared.tolist()
    wrong = ends >= spare
    atoms = operator.structures.atoms_of(wrong)
    zero(operator)
    alone = make_signal(signal, **settings)(operator.select(wrong), x[atoms], target[atoms])
    torch.testing.assert_close(found, grads(operator) * 2 / 3, rtol=1e-7, atol=1e-10)
    assert report.loss == pytest.approx(alone.loss * 2 / 3)
    zero(operator)
    report = make_signal(signal, **settings, spare=1e6)(operator, x, target)
    assert report.spared.all() and report.loss == 0.0
    assert all(p.grad is None for p in operator.field.parameters())


def test_what_diverged_is_not_spared():
    operator, x, target = random_batch("site", [4, 2], conservative=True)
    settings = TIGHT | {"spare": 1e6, "horizon": 0, "max_steps": 1}
    report = make_signal("gdeq", **settings)(operator, x, target)
    assert not report.converged.any() and not report.spared.any()


class Neighbours(torch.nn.Module):
    """Two atoms on springs to their sites that repel within 1 Angstrom, if listed as neighbours."""

    translation_invariant = False
    sites = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64)

    def __init__(self, stiff, near=False, live=False):
        super().__init__()
        self.stiff, self.near, self.live = stiff, near, live

    def select(self, structures):
        return self

    def freeze(self, positions):
        return Neighbours(self.stiff, bool((positions[0] - positions[1]).norm() < 1))

    def unfreeze(self):
        return Neighbours(self.stiff, live=True)

    def forward(self, positions):
        apart = positions[0] - positions[1]
        if self.live:
            return self.freeze(positions)(positions)
        push = 20 * self.near * (1 - apart.norm()).clamp_min(0) ** 2 * apart / apart.norm()
        return torch.stack([push, -push]) - self.stiff * (positions - self.sites)


@pytest.mark.parametrize("hold", [False, True])
def test_equilibrium_of_the_potential_itself_unless_the_graph_is_held(hold):
    """Atoms that become neighbours only on the way: a held graph lets them pass each other."""
    start = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    field = Neighbours(torch.nn.Parameter(torch.ones(3)))
    operator = Operator.build(field, structures([2]), 0.1)
    method = TIGHT | {"horizon": 1, "hold_graph": hold}
    report = make_signal("gdeq", **method)(operator, start, field.sites)
    assert report.converged.all() and report.contributing.all()
    residual = field.freeze(report.positions)(report.positions).abs().max()
    assert residual > 1 if hold else residual < 1e-7


def broken_batch(value, everything=False):
    s = structures([3, 4, 2])
    generator = torch.Generator().manual_seed(0)
    sites = torch.randn(9, 3, generator=generator)
    start = sites + 0.5 * torch.randn(9, 3, generator=generator)
    field = Broken(sites, s.batch, start, value)
    field.curl = 0.0
    if everything:
        field.sick[:] = True
    return Operator.build(field, s, 0.1), start, sites + 0.1


@pytest.mark.parametrize("signal", OF_PATHS)
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_divergence_never_reaches_the_others_gradient(signal, value):
    operator, x, target = broken_batch(value)
    zero(operator)
    report = make_signal(signal, **TIGHT)(operator, x, target)
    assert report.diverged.tolist() == [True, False, False]
    assert not report.contributing[0]
    gradient = grads(operator)
    assert torch.isfinite(gradient).all() and torch.isfinite(torch.tensor(report.loss))
    healthy = torch.tensor([False, True, True])
    atoms = operator.structures.atoms_of(healthy)
    zero(operator)
    make_signal(signal, **TIGHT)(operator.select(healthy), x[atoms], target[atoms])
    torch.testing.assert_close(gradient, grads(operator) * 2 / 3, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("signal", OF_PATHS)
def test_a_batch_that_diverges_altogether_gives_no_nan(signal):
    operator, x, target = broken_batch(float("nan"), everything=True)
    zero(operator)
    report = make_signal(signal, **TIGHT)(operator, x, target)
    assert report.diverged.all() and report.loss == 0.0
    for p in operator.field.parameters():
        assert p.grad is None or torch.isfinite(p.grad).all()


def test_unconverged_equilibrium_is_dropped_and_counted():
    operator, x, target = random_batch("site", [4, 3])
    method = {"horizon": 3, "fmax": 1e-12, "max_steps": 2}
    zero(operator)
    report = make_signal("gdeq", **method)(operator, x, target)
    assert not report.converged.any() and not report.contributing.any()
    both = grads(operator)
    zero(operator)
    guided = make_signal("truncated_bptt", **method)(operator, x, target)
    assert torch.equal(both, grads(operator))
    assert report.loss == pytest.approx(guided.loss)


def test_adjoint_short_of_its_tolerance_is_dropped_and_counted():
    operator, x, target = random_batch("site", [4, 3], conservative=True)
    method = {
        "horizon": 3,
        "fmax": 1e-8,
        "max_steps": 500,
        "adjoint": GMRES(tol=1e-12, max_vjps=2, damping=0.0),
    }
    zero(operator)
    report = make_signal("gdeq", **method)(operator, x, target)
    assert report.converged.all() and not report.contributing.any()
    assert (report.adjoint_residual > 1e-12).all()
    both = grads(operator)
    zero(operator)
    make_signal("truncated_bptt", **method)(operator, x, target)
    assert torch.equal(both, grads(operator))


def test_warm_start_gives_the_same_gradient_for_fewer_vjps():
    operator, x, target = random_batch("site", [4, 3], conservative=True)
    zero(operator)
    cold = make_signal("gdeq", **TIGHT)(operator, x, target)
    first = grads(operator)
    zero(operator)
    warm = make_signal("gdeq", **TIGHT)(operator, x, target, cold.adjoint)
    torch.testing.assert_close(grads(operator), first, rtol=1e-6, atol=1e-9)
    assert (warm.vjps < cold.vjps).all()


def test_implicit_starts_at_x0():
    operator, x, target = random_batch("site", [4, 3])
    report = make_signal("implicit", **TIGHT)(operator, x, target)
    assert torch.equal(report.handoff, x)
    assert isinstance(operator.field, SiteField)


def test_coupled_is_the_stored_graph_with_both_losses():
    """What it adds to the equilibrium's own gradient, against autograd through the unrolled window."""
    operator, x, target = random_batch("site", [4, 2], conservative=True)
    settings = TIGHT | {"lambda_guide": 0.7, "lambda_eq": 1.9, "loss": "log_delta_q"}
    zero(operator)
    report = make_signal("coupled", **settings)(operator, x, target)
    found, loss = grads(operator), report.loss
    zero(operator)
    plain = make_signal("gdeq", **settings | {"lambda_guide": 0.0})(operator, x, target)
    equilibrium = grads(operator)

    zero(operator)
    own = LogDeltaQ()
    moved = x
    for _ in range(4):
        moved = operator(moved)
    ahead = (report.positions - moved).detach()
    losses = [
        weight * own(at, target, operator.structures, operator.pin).mean()
        for weight, at in ((0.7, moved), (1.9, moved + ahead))
    ]
    sum(losses).backward()
    torch.testing.assert_close(found, equilibrium + grads(operator), rtol=1e-8, atol=1e-11)
    assert loss == pytest.approx(float(losses[0]) + plain.loss)


def test_direct_is_one_uncapped_step_whatever_the_settings():
    """Its loss and gradient written out: fixed atoms stay, and the horizon is of no effect."""
    operator, x, target = random_batch("site", [4, 2], fixed=[1, 5])
    zero(operator)
    report = make_signal("direct", **TIGHT)(operator, x, target)
    found, s = grads(operator), operator.structures
    zero(operator)
    move = torch.where(s.free[:, None], 0.1 * operator.field(x), 0.0)
    apart = s.masses[:, None] * (x + move - target)[:, :] ** 2
    squared = torch.zeros(2).index_add(0, s.batch[s.free], apart[s.free].sum(-1))
    loss = squared.sqrt().mean()
    loss.backward()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(found, grads(operator), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(report.handoff, (x + move).detach())
    assert report.evaluations.tolist() == [1, 1] and torch.equal(report.handoff[1], x[1])


def test_one_shot_that_diverges_is_left_out():
    operator, x, target = random_batch("site", [4, 2])
    lost = torch.where((operator.structures.batch == 0)[:, None], 1e6, x)
    zero(operator)
    report = make_signal("direct")(operator, lost, target)
    found = grads(operator)
    assert report.diverged.tolist() == [True, False]
    alone, atoms = operator.select(~report.diverged), operator.structures.atoms_of(~report.diverged)
    zero(operator)
    make_signal("direct")(alone, x[atoms], target[atoms])
    torch.testing.assert_close(found, grads(operator) / 2)


def test_force_training_alone_has_no_gradient_by_structures():
    operator, x, target = random_batch("site", [4, 2])
    report = make_signal("ft_static", **TIGHT)(operator, x, target)
    assert all(p.grad is None for p in operator.field.parameters())
    assert report.loss == 0.0 and torch.equal(report.handoff, x)
