"""What may not count: unbounded adjoints, structures that diverge, forces that are not small."""

import pytest
import torch

from fairchem_gdeq.batching.streams import Stream
from fairchem_gdeq.relax import (
    GMRES,
    LBFGS,
    Anderson,
    Operator,
    Picard,
    Relaxer,
    delta_q,
    make_signal,
    solve,
)
from fairchem_gdeq.relax.adjoints.gmres import _Cycle
from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS, rollout
from fairchem_gdeq.testing.fields import SiteField, random_batch, structures
from tests.batching.test_streams import requests


class Springs(torch.nn.Module):
    """F = -k (x - site), a k for each coordinate; k < 0 is a saddle."""

    translation_invariant = rotation_equivariant = False

    def __init__(self, stiffness, batch, scale=None):
        super().__init__()
        self.stiffness, self.batch = stiffness, batch
        self.scale = torch.nn.Parameter(torch.ones(())) if scale is None else scale

    def forward(self, x):
        return -self.scale * self.stiffness * x

    def select(self, mask):
        atoms = mask[self.batch]
        batch = (mask.long().cumsum(0) - 1)[self.batch[atoms]]
        return Springs(self.stiffness[atoms], batch, self.scale)

    def freeze(self, positions):
        return self

    def unfreeze(self):
        return self


def springs(stiffness, alpha, **options):
    """One structure of one atom for each row of curvatures."""
    s = structures([1] * len(stiffness))
    return Operator.build(Springs(torch.tensor(stiffness), s.batch), s, alpha, **options)


# ---- damping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", [-0.59, -0.61, -0.62])
def test_damping_promises_nothing_beside_a_saddle_and_says_so(curvature):
    """alpha h + mu vanishes at h = -0.6: u would be thousands of g, where 1 / mu = 33 is promised."""
    operator = springs([[curvature, 2.0, 3.0], [0.01, 2.0, 3.0]], alpha=0.05)
    g = torch.ones(2, 3)
    answer = GMRES(tol=1e-9, max_vjps=100, damping=0.03)(operator, torch.zeros(2, 3), g)
    assert answer.unbounded.tolist() == [True, False]
    assert answer.converged.tolist() == [False, True]
    assert answer.u[0].norm() > g[0].norm() / 0.03 >= answer.u[1].norm()
    assert (answer.residual <= 1e-9).all(), "the system is solved; its solution is of no use"


def test_a_step_leaves_out_a_structure_whose_adjoint_is_unbounded():
    stiffness = [[-0.599, 2.0, 3.0], [1.0, 2.0, 3.0]]
    operator = springs(stiffness, alpha=0.05)
    start, target = torch.zeros(2, 3), torch.full((2, 3), 0.1)
    method = {"horizon": 0, "fmax": 1e-6, "adjoint": GMRES(tol=1e-9, damping=0.03)}
    report = make_signal("implicit", **method)(operator, start, target)
    assert report.converged.all()
    assert report.unbounded.tolist() == [True, False]
    assert report.contributing.tolist() == [False, True]
    assert report.loss == pytest.approx(float(report.relaxed[1]) / 2)


# ---- GMRES -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breakdown_is_judged_relative_to_the_matrix(dtype):
    """Two different curvatures: a Krylov space of two vectors, also in single precision."""
    torch.set_default_dtype(dtype)
    operator = springs([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], alpha=0.1)
    r = 1e-3 * torch.tensor([[1.0, 0.5, -0.2], [0.3, 0.7, 0.1]])
    cycle = _Cycle.begin(operator, torch.zeros(2, 3), r, 0.0, 20)
    correction, spent, residual, exhausted = cycle.run(torch.zeros(2))
    assert exhausted.all()
    assert spent.tolist() == [2, 1]
    expected = r / (0.1 * operator.field.stiffness)
    torch.testing.assert_close(correction, expected, rtol=20 * torch.finfo(dtype).eps, atol=0)
    assert (residual <= 20 * torch.finfo(dtype).eps).all()


def test_a_singular_system_fails_alone_and_stays_finite():
    """Curvature 0 in one structure: I - J_G has a null vector, and g has a part along it."""
    operator = springs([[0.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], alpha=0.1)
    g = torch.ones(3, 3)
    answer = GMRES(tol=1e-8, max_vjps=30, damping=0.0)(operator, torch.zeros(3, 3), g)
    assert answer.converged.tolist() == [False, True, False]
    assert torch.isfinite(answer.u).all()
    assert float(answer.residual[0]) > 0.1 and float(answer.residual[2]) == pytest.approx(1.0)
    torch.testing.assert_close(answer.u[1], g[1] / (0.1 * operator.field.stiffness[1]))


def test_a_guess_costs_nothing_where_it_is_zero_and_is_dropped_where_it_is_worse():
    operator, x, _ = random_batch("site", [4, 3, 5])
    x = solve(operator, x, LBFGS(stiffness=3.0, softest=None), 1e-10, 2000).positions
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    cold = GMRES(tol=1e-8, max_vjps=100, damping=0.0)(operator, x, g)
    zero = GMRES(tol=1e-8, max_vjps=100, damping=0.0)(operator, x, g, guess=torch.zeros_like(x))
    assert torch.equal(zero.vjps, cold.vjps) and torch.equal(zero.u, cold.u)
    mixed = 1e4 * torch.ones_like(
        x
    )  # far off for the first, nothing for the second, right for the third
    mixed[operator.structures.batch == 1] = 0.0
    mixed[operator.structures.batch == 2] = cold.u[operator.structures.batch == 2]
    warm = GMRES(tol=1e-7, max_vjps=100, damping=0.0)(operator, x, g, guess=mixed)
    assert warm.converged.all()
    less = GMRES(tol=1e-7, max_vjps=100, damping=0.0)(operator, x, g)
    assert (warm.vjps - less.vjps)[:2].tolist() == [1, 0] and int(warm.vjps[2]) == 1


# ---- forces decide when the guidance is over ---------------------------------------------------


def test_one_atom_with_a_force_keeps_a_large_structure_going():
    """alpha = 0.01, one of 30 atoms at 0.5 eV/Angstrom: its step is 0.001 Angstrom RMS, yet it moves."""
    s = structures([30])
    sites = torch.zeros(30, 3)
    field = SiteField(sites, s.batch, curl=0.0)
    field.w2.data.zero_()
    x = torch.zeros(30, 3)
    x[7, 0] = 0.5 / float(field.stiff[0])
    operator = Operator.build(field, s, 0.01)
    path = rollout(operator, x, 40, fmax=0.02)
    assert not path.settled.any() and int(path.evaluations) == 40
    calm = rollout(operator, x / 100, 40, fmax=0.02)
    assert calm.settled.all() and int(calm.evaluations) == 1


def test_training_and_evaluation_hand_over_at_the_same_point():
    operator, x, _ = random_batch("site", [4, 3, 5], alpha=0.2)
    fmax = 0.3
    path = rollout(operator, x, 60, fmax)
    assert path.settled.any()
    way = Relaxer(60, Picard(), fmax, 0)
    for end in Stream(requests(operator, x), way, 100):
        mine = operator.structures.batch == end.key
        torch.testing.assert_close(end.positions, path.positions[mine], rtol=0, atol=1e-12)
        assert end.evaluations == int(path.evaluations[end.key]) + 1


# ---- diverged structures -----------------------------------------------------------------------


class Cliff(SiteField):
    """Finite forces whose derivative by ``stiff`` is infinite for the first structure; then infinity."""

    def forward(self, x):
        f = super().forward(x)
        if not self.sick:
            return f
        first = (self.batch == 0)[:, None]
        root = (self.stiff - self.stiff.detach()).clamp_min(0.0).sqrt()  # 0, with slope infinity
        f = f + torch.where(first, root * x, 0.0)
        gone = first & (x.abs().max() > self.limit)
        return torch.where(gone, torch.inf, f)

    def select(self, mask):
        out = super().select(mask)
        out.__class__ = Cliff
        out.sick, out.limit = self.sick and bool(mask[0]), self.limit
        return out


@pytest.mark.parametrize("way", GUIDANCE_GRADIENTS)
def test_the_past_of_a_diverged_structure_is_not_differentiated(way):
    operator, x, target = random_batch("site", [3, 4], alpha=0.1)
    field = operator.field
    field.__class__ = Cliff
    x[0] = torch.tensor([6.0, 6.0, 6.0])
    # Away from its sites at first, so that it goes over the cliff after some sound steps.
    field.sites[:3] = x[:3] + 8.0
    field.sick, field.limit = True, 7.0
    path = rollout(operator, x, 8)
    assert path.diverged.tolist() == [True, False] and int(path.evaluations[0]) > 1

    def loss(z):
        return delta_q(z, target, operator.structures, operator.pin)

    GUIDANCE_GRADIENTS[way](operator, x, 8, loss, 1.0)
    found = field.stiff.grad.clone()
    assert torch.isfinite(found).all()

    mask = torch.tensor([False, True])
    alone, atoms = operator.select(mask), operator.structures.atoms_of(mask)
    field.stiff.grad = None

    def own(z):
        return delta_q(z, target[atoms], alone.structures, alone.pin)

    GUIDANCE_GRADIENTS["sweep"](alone, x[atoms], 8, own, 0.5)
    torch.testing.assert_close(found, field.stiff.grad, rtol=1e-12, atol=0)


def test_a_restart_of_anderson_empties_its_window():
    """The ridge is relative to the mean over the columns that a structure has."""
    operator, x, _ = random_batch("site", [4, 3], alpha=0.2)
    solver = Anderson(growth=1.0)  # restarts whenever the residual grows
    state = solver.start(operator, x)
    restarts = 0
    for _ in range(60):
        move, state = solver.propose(operator, x, operator.forces(x).detach(), state)
        x = x + move
        used = (state.dr.abs().amax(-1) > 0).long()
        columns = torch.stack([used[:, first].sum() for first in (0, 4)])
        assert torch.equal(columns.to(state.length), state.length)
        restarts += int((state.length == 0).sum())
    assert restarts > 2, "no structure restarted: the test shows nothing"


def test_a_singular_system_is_given_up_when_its_space_is_exhausted():
    """Curvatures 0, 2, 3 span three vectors, and no more VJPs find anything else."""
    operator = springs([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], alpha=0.1)
    answer = GMRES(tol=1e-8, max_vjps=60, damping=0.0)(
        operator, torch.zeros(3, 3), torch.ones(3, 3)
    )
    assert answer.converged.tolist() == [False, False, True]
    assert answer.vjps.tolist()[:2] == [3, 1] and int(answer.vjps[2]) <= 4


def test_a_guess_that_is_not_a_number_is_dropped():
    operator = springs([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], alpha=0.1)
    guess = torch.tensor([[torch.nan, 0.0, 0.0], [0.0, torch.inf, 0.0]])
    plain = GMRES(tol=1e-9, max_vjps=100, damping=0.0)(
        operator, torch.zeros(2, 3), torch.ones(2, 3)
    )
    found = GMRES(tol=1e-9, max_vjps=100, damping=0.0)(
        operator, torch.zeros(2, 3), torch.ones(2, 3), guess=guess
    )
    assert found.converged.all() and torch.equal(found.u, plain.u)
