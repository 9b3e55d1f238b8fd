"""Rigid motions of structures that nothing holds: taken out of forces, Delta Q and the adjoint."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fairchem_gdeq.relax import GMRES, LBFGS, Operator, Picard, delta_q, make_signal, solve
from fairchem_gdeq.relax.guidance import guidance_by_stored_graph
from fairchem_gdeq.relax.loss import rigid_shift
from fairchem_gdeq.relax.rigid import FREE, SHIFT, SHIFT_AND_TURN
from fairchem_gdeq.testing.fields import (
    PairField,
    central_differences,
    dense_jacobian,
    grads,
    random_batch,
    structures,
    zero,
)


def turns_of(x: torch.Tensor) -> torch.Tensor:
    """The three rotations about the centre, [3, n, 3]."""
    arms = x - x.mean(0)
    return torch.stack([torch.linalg.cross(axis.expand_as(arms), arms) for axis in torch.eye(3)])


def test_what_is_pinned_by_default():
    for length, fixed, expected in (
        (None, [], (SHIFT_AND_TURN, SHIFT_AND_TURN)),
        (None, [1], (FREE, SHIFT_AND_TURN)),
        (9.0, [], (SHIFT, SHIFT)),
    ):
        s = structures([3, 4], fixed=fixed, length=length)
        assert Operator.build(PairField(s.batch), s, 0.1).pinned == expected
        assert Operator.build(PairField(s.batch), s, 0.1, remove_drift=False).pinned == (0, 0)
    s = structures([3, 4])
    deaf = PairField(s.batch)
    deaf.rotation_equivariant = False
    assert Operator.build(deaf, s, 0.1).pinned == (SHIFT, SHIFT)


def test_no_net_force_and_no_torque_is_left():
    operator, x, _ = random_batch("pair", [4, 1, 2, 6])
    raw, forces = operator.field(x), operator.forces(x)
    for k, size in enumerate(operator.structures.sizes):
        mine = operator.structures.batch == k
        assert forces[mine].sum(0).abs().max() < 1e-12
        torque = torch.linalg.cross(x[mine] - x[mine].mean(0), forces[mine]).sum(0)
        assert torque.abs().max() < 1e-11
        if size > 2:
            assert torch.linalg.cross(x[mine], raw[mine]).sum(0).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [[5], [2], [1, 4, 3]])
def test_vjp_through_the_moving_projection(sizes):
    """The projection turns with the positions; a pair of atoms has two rotations only."""
    operator, x, _ = random_batch("pair", sizes, cap=0.3)
    lam = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    numeric = central_differences(operator, x, lam, 1e-6)
    assert (operator.vjp(x, lam) - numeric).norm() / numeric.norm() < 1e-6


def test_three_atoms_in_line_have_two_rotations():
    s = structures([3])
    operator = Operator.build(PairField(s.batch), s, 0.1)
    axis = torch.tensor([1.0, 2.0, -1.0]) / math.sqrt(6)
    x = torch.tensor([-1.1, 0.1, 1.3])[:, None] * axis
    vectors = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    left = operator.project(vectors, x)
    across = [t for t in turns_of(x) if t.norm() > 1e-9]
    basis = torch.linalg.svd(torch.stack(across).flatten(1))[2][:2]
    shifts = torch.eye(3).repeat(1, 3) / math.sqrt(3)
    everything = torch.cat([basis, shifts])
    expected = vectors.flatten() - everything.T @ (everything @ vectors.flatten())
    torch.testing.assert_close(left.flatten(), expected, rtol=1e-10, atol=1e-12)


def test_a_relaxation_neither_drifts_nor_spins():
    operator, x, _ = random_batch("pair", [5, 6], alpha=0.02)
    path = [x]
    solve(operator, x, Picard(), 1e-9, 150, observe=lambda z, _: path.append(z))
    for before, after in pairwise(path):
        for mine in (operator.structures.batch == k for k in range(2)):
            step, arms = after[mine] - before[mine], before[mine] - before[mine].mean(0)
            assert step.sum(0).abs().max() < 1e-11
            assert torch.linalg.cross(arms, step).sum(0).abs().max() < 1e-11


def relaxed():
    operator, x, _ = random_batch("pair", [5, 6])
    found = solve(operator, x, LBFGS(stiffness=3.0, softest=None), 1e-11, 3000)
    assert found.converged.all()
    generator = torch.Generator().manual_seed(5)
    return operator, found.positions, x + 0.3 * torch.randn(x.shape, generator=generator)


def test_adjoint_of_free_molecules_against_a_dense_solve():
    """I - J_G is singular along six motions of each; Delta Q's gradient has no part along them."""
    operator, x, target = relaxed()
    z = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(delta_q(z, target, operator.structures, operator.pin).sum(), z)
    matrix = torch.eye(3 * len(x)) - dense_jacobian(operator, x)
    values = torch.linalg.svdvals(matrix)
    assert (values[-12:] < 1e-8).all() and values[-13] > 1e-3
    dense = torch.linalg.pinv(matrix.T, rtol=1e-6) @ g.flatten()
    assert (matrix.T @ dense - g.flatten()).norm() < 1e-8 * g.norm(), "the system is consistent"
    answer = GMRES(tol=1e-11, max_vjps=300, damping=0.0)(operator, x, g)
    assert answer.converged.all()
    assert (answer.u.flatten() - dense).norm() / dense.norm() < 1e-7


def test_implicit_gradient_of_free_molecules_is_the_limit_of_bptt():
    operator, x, target = random_batch("pair", [4, 5], alpha=0.1)
    method = {
        "solver": "picard",
        "fmax": 1e-10,
        "max_steps": 6000,
        "adjoint": GMRES(tol=1e-10, max_vjps=300, damping=0.0),
    }
    zero(operator)
    report = make_signal("implicit", **method)(operator, x, target)
    assert report.contributing.all()
    implicit = grads(operator)
    zero(operator)
    guidance_by_stored_graph(
        operator,
        x,
        4000,
        lambda z: delta_q(z, target, operator.structures, operator.pin),
        1.0,
    )
    assert (implicit - grads(operator)).norm() / implicit.norm() < 1e-5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), turn=st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_delta_q_of_a_free_molecule_does_not_feel_how_it_lies(seed, turn):
    """Turned and shifted as a rigid body: the same Delta Q, which is Kabsch's by scipy."""
    generator = torch.Generator().manual_seed(seed)
    s = structures([5, 4])
    pin = torch.tensor([SHIFT_AND_TURN, SHIFT])
    x = torch.randn(9, 3, generator=generator)
    y = x + 0.3 * torch.randn(9, 3, generator=generator)
    value = delta_q(x, y, s, pin)
    moved = x.clone()
    moved[:5] = x[:5] @ torch.as_tensor(Rotation.from_rotvec(turn).as_matrix()) + 2.0
    again = delta_q(moved, y, s, pin)
    torch.testing.assert_close(again, value, rtol=1e-8, atol=1e-8)

    m = s.masses[:5].numpy()
    a, b = (z[:5].numpy() - np.average(z[:5].numpy(), axis=0, weights=m) for z in (y, moved))
    _, distance = Rotation.align_vectors(a, b, weights=m)
    assert float(again[0]) == pytest.approx(distance, rel=1e-6)


def test_gradient_of_the_aligned_delta_q():
    s = structures([4, 3])
    pin = torch.tensor([SHIFT_AND_TURN, FREE])
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(7, 3, generator=generator) for _ in range(2))
    z = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(delta_q(z, y, s, pin).sum(), z)
    value = lambda z: delta_q(z, y, s, pin).sum()[None, None]  # noqa: E731
    numeric = central_differences(value, x, torch.ones(1, 1), 1e-6)
    assert (g - numeric).norm() / numeric.norm() < 1e-7
    for turn in turns_of(x[:4]):
        assert abs(float((turn * g[:4]).sum())) < 1e-10


def test_the_shift_that_was_taken_out_is_told():
    s = structures([4, 3, 2], length=5.0, fixed=[8])
    y = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) * 5
    shifts = torch.tensor([[0.3, -0.4, 1.2], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pin = torch.tensor([SHIFT, SHIFT, FREE])
    told = rigid_shift(y + shifts[s.batch], y, s, pin)
    torch.testing.assert_close(told, torch.tensor([1.3, 2.0, 0.0]))


def test_what_the_projection_took_out_is_reported():
    """A net push on every atom: removed, and reported with the solution and the step."""
    operator, x, target = random_batch("pair", [4, 5], alpha=0.02)

    class Pushed(PairField):
        def forward(self, z):
            return super().forward(z) + torch.tensor([0.0, 0.25, 0.0])

        def select(self, mask):
            out = super().select(mask)
            out.__class__ = Pushed
            return out

    operator.field.__class__ = Pushed
    found = solve(operator, x, LBFGS(stiffness=5.0, softest=None), 1e-8, 2000)
    raw = operator.field(found.positions) - operator.forces(found.positions)
    for k in range(2):
        longest = raw[operator.structures.batch == k].norm(dim=-1).max()
        assert float(found.removed[k]) == pytest.approx(float(longest), rel=1e-9)
        assert float(found.removed[k]) > 0.1
    method = {"horizon": 3, "max_steps": 2000, "solver": LBFGS(stiffness=5.0, softest=None)}
    report = make_signal("gdeq", **method)(operator, x, target)
    assert (report.removed > 0.1).all() and (report.shift > 0).all()
