"""One linearisation for all VJPs at X*: the same numbers, fewer evaluations, one graph at a time."""

import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fairchem_gdeq.relax import GMRES, LBFGS, Neumann, solve
from fairchem_gdeq.relax.linearised import Linearised
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.testing.fields import SiteField, dense_jacobian, grads, random_batch, zero

SIZES = [4, 1, 5, 3]


class _Mark(torch.autograd.Function):
    """Nothing, but of Python: its node lives as long as the graph, and can be watched."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Watched(SiteField):
    """Keeps the atoms of every evaluation with a graph, and how many graphs are alive at once."""

    def forward(self, x):
        out = _Mark.apply(super().forward(x))
        if out.requires_grad:
            self.log.append(len(x))
            self.alive.append(weakref.ref(out.grad_fn))
            self.most.append(sum(each() is not None for each in self.alive))
        return out

    def select(self, mask):
        out = super().select(mask)
        out.__class__ = type(self)
        out.log, out.alive, out.most = self.log, self.alive, self.most
        return out


class Checkpointed(Watched):
    """Forgets its activations and makes them again in each backward."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.used = False
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.used:
            raise RuntimeError("only once")
        ctx.used = True
        return grad


class Once(Watched):
    """Refuses a second backward, as models that were compiled elsewhere may."""

    def forward(self, x):
        return _Once.apply(super().forward(x))


def problem(kind=Watched, **options):
    operator, x, target = random_batch("site", SIZES, **options)
    operator.field.__class__ = kind
    operator.field.log, operator.field.alive, operator.field.most = [], [], []
    return operator, x, target


@pytest.mark.parametrize("kind", [Watched, Checkpointed, Once])
@pytest.mark.parametrize("options", [{}, {"fixed": [0, 6], "cap": 0.05}, {"remove_drift": True}])
def test_vjps_are_those_of_the_dense_jacobian(kind, options):
    operator, x, _ = problem(kind, **options)
    plain, _, _ = random_batch("site", SIZES, **options)
    jacobian = dense_jacobian(plain, x)
    linear = Linearised.at(operator, x)
    generator = torch.Generator().manual_seed(1)
    masks = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1]]
    for mask in [torch.tensor(each) > 0 for each in masks]:
        part, atoms = linear.select(mask), operator.structures.atoms_of(mask)
        lam = torch.zeros_like(x)
        lam[atoms] = torch.randn(len(atoms), 3, generator=generator)
        wanted = (jacobian.T @ lam.flatten()).view(-1, 3)
        wanted[~operator.structures.free] = 0.0
        found = part.vjp(x[atoms], lam[atoms])
        torch.testing.assert_close(found, wanted[atoms], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [Watched, Checkpointed, Once])
@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_parameter_gradients_are_those_of_the_operator(kind, mask, before):
    operator, x, _ = problem(kind)
    mask = torch.tensor(mask) > 0
    atoms = operator.structures.atoms_of(mask)
    lam = torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(1))
    plain, _, _ = random_batch("site", SIZES)
    wanted = plain.select(mask).vjp(x[atoms], lam, accumulate=True)
    linear = Linearised.at(operator, x)
    for _ in range(before):
        linear.vjp(x, torch.ones_like(x))
    found = linear.select(mask).vjp(x[atoms], lam, accumulate=True)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grads(operator), grads(plain), rtol=1e-12, atol=1e-13)
    assert all(each() is None for each in operator.field.alive), "a graph is held"
    if mask.all() and before == 3 and kind is Watched:
        assert operator.field.log == [13], "the parameters' gradient took another evaluation"


def relaxed(kind=Watched, **options):
    operator, x, target = problem(kind, **options)
    found = solve(operator, x, LBFGS(stiffness=3.0, softest=None), fmax=1e-10, max_steps=2000)
    return operator, found.positions, target


@pytest.mark.parametrize("adjoint", [GMRES, Neumann])
@pytest.mark.parametrize("kind", [Watched, Checkpointed, Once])
@pytest.mark.parametrize("guessed", [False, True])
def test_adjoints_are_the_same_and_hold_one_graph(adjoint, kind, guessed):
    operator, x, _ = relaxed(kind)
    generator = torch.Generator().manual_seed(5)
    g, guess = torch.randn(2, *x.shape, generator=generator)
    guess = 1e-3 * guess if guessed else None
    solver = adjoint(tol=1e-9, max_vjps=400, damping=0.1)
    wanted = solver(operator, x, g, guess)
    operator.field.log.clear()
    operator.field.most.clear()
    linear = Linearised.at(operator, x)
    found = solver(linear, x, g, guess)
    assert found.converged.all()
    assert ((found.vjps - wanted.vjps).abs() <= 1).all()
    torch.testing.assert_close(found.u, wanted.u, rtol=1e-6, atol=1e-8)
    assert max(operator.field.most) == 1
    if kind is Watched:
        # Each graph after the first was paid for by what it saved.
        assert sum(operator.field.log) <= 13 + 2 * int(wanted.vjps.max()) * 13 // 3
        assert len(operator.field.log) <= len(SIZES) + 2
    del linear
    assert all(each() is None for each in operator.field.alive), "a graph is held"


def test_a_graph_is_built_anew_when_that_is_paid_for():
    """13 atoms, then 4 asked for: 9 wasted in the first backward are more than 4."""
    operator, x, _ = problem()
    linear, lam = Linearised.at(operator, x), torch.ones_like(x)
    first = torch.tensor([True, False, False, False])
    part, atoms = linear.select(first), operator.structures.atoms_of(first)
    linear.vjp(x, lam)
    for _ in range(3):
        part.vjp(x[atoms], lam[atoms])
    assert operator.field.log == [13, 4]
    without_one = torch.tensor([True, False, True, True])
    part, atoms = linear.select(without_one), operator.structures.atoms_of(without_one)
    for _ in range(14):
        part.vjp(x[atoms], lam[atoms])
    assert operator.field.log == [13, 4, 12], "structures outside of the graph need a new one"


def test_a_derivative_that_is_infinite_elsewhere_does_not_reach_the_parameters():
    class Sick(Watched):
        def forward(self, x):
            if len(x) < 13:  # without the first structure
                return super().forward(x)
            root = (self.stiff - self.stiff.detach()).clamp_min(0.0).sqrt()  # 0, slope infinity
            first = (self.batch == 0)[:, None]
            return super().forward(x) + torch.where(first, root * x, 0.0)

    operator, x, _ = problem(Sick)
    plain, _, _ = problem()
    mask = torch.tensor([False, True, True, True])
    atoms = operator.structures.atoms_of(mask)
    linear = Linearised.at(operator, x)
    for _ in range(2):
        linear.vjp(x, torch.ones_like(x))
        linear.select(mask).vjp(x[atoms], torch.ones(9, 3))
    linear.select(mask).vjp(x[atoms], torch.ones(9, 3), accumulate=True)
    plain.select(mask).vjp(x[atoms], torch.ones(9, 3), accumulate=True)
    torch.testing.assert_close(grads(operator), grads(plain))


def test_other_positions_are_not_answered():
    operator, x, _ = problem()
    elsewhere = x.clone()
    elsewhere[2] += 0.1
    found = Linearised.at(operator, x).vjp(elsewhere, torch.ones_like(x))
    assert found.isnan().any(dim=1).nonzero().flatten().tolist() == [2]


def test_it_joins_and_freezes_as_the_operator_does():
    operator, x, _ = problem()
    operator.field.__class__ = SiteField
    linear = Linearised.at(operator, x)
    mask = torch.tensor([True, False, True, False])
    joined = linear.select(mask).join([linear.select(~mask)])
    for each in (joined, linear.freeze(x), linear.unfreeze()):
        assert type(each) is Operator
    order = torch.cat([operator.structures.atoms_of(m) for m in (mask, ~mask)])
    torch.testing.assert_close(joined(x[order]), operator(x)[order])


def test_gmres_takes_one_graph_for_structures_that_go_on_together():
    operator, x, _ = relaxed()
    zero(operator)
    g = torch.ones_like(x)
    answer = GMRES(tol=1e-9, max_vjps=50, damping=0.1)(Linearised.at(operator, x), x, g)
    assert int(answer.vjps.sum()) > 8 * len(operator.field.log)
