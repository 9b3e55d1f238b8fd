"""Delta Q and minimum images, against ASE, numpy and central differences."""

import itertools

import numpy as np
import pytest
import torch
from ase.geometry import find_mic
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.relax import LogDeltaQ, Structures, delta_q, max_displacement
from fairchem_gdeq.testing.fields import structures

CELLS = {
    "cubic": np.eye(3) * 5.4,
    "hexagonal": np.array([[3.2, 0, 0], [-1.6, 2.77, 0], [0, 0, 20.0]]),
    "skewed": np.array([[4.0, 0, 0], [1.9, 3.6, 0], [1.7, -1.5, 3.9]]),
}


def batch(cell, pbc, n):
    return Structures(
        batch=torch.zeros(n, dtype=torch.long),
        free=torch.ones(n, dtype=torch.bool),
        masses=torch.linspace(1, 40, n),
        cell=torch.as_tensor(cell)[None],
        pbc=torch.tensor([pbc]),
    )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_minimum_image_is_the_shortest_and_ases(cell, pbc):
    moves = np.random.default_rng(1).normal(scale=9.0, size=(60, 3))
    ours = batch(CELLS[cell], pbc, 60).minimum_image(torch.as_tensor(moves)).numpy()
    cells = np.array(list(itertools.product(*(range(-14, 15) if p else (0,) for p in pbc))))
    images = moves[:, None] + (cells @ CELLS[cell])[None]
    shortest = np.linalg.norm(images, axis=2).min(1)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), shortest, atol=1e-10)
    if all(pbc):  # with a skewed cell and fewer directions ASE's answer is not the shortest
        _, theirs = find_mic(moves, CELLS[cell], pbc=pbc)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), theirs, atol=1e-10)


def test_no_cell_at_all():
    s = batch(np.zeros((3, 3)), (False, False, False), 4)
    moves = torch.randn(4, 3) * 30
    assert torch.equal(s.minimum_image(moves), moves)


def test_delta_q_is_its_formula():
    s = structures([3, 5], fixed=[0, 6])
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 3, generator=generator)
    none = torch.zeros(2, dtype=torch.bool)
    m, d, free = s.masses.numpy(), (x - y).numpy(), s.free.numpy()
    for k, value in enumerate(delta_q(x, y, s, none).tolist()):
        mine = (s.batch.numpy() == k) & free
        assert value == pytest.approx(np.sqrt((m[mine, None] * d[mine] ** 2).sum()), rel=1e-12)
    longest = max_displacement(x, y, s, none)
    assert longest[0] == pytest.approx(np.linalg.norm(d[1:3], axis=1).max())


def test_far_structures_pull_less_in_the_logarithm():
    """Its slope by Delta Q is 1 / (1 + Delta Q / scale)."""
    s = structures([3, 5])
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(8, 3, generator=generator)
    x = (y + torch.randn(8, 3, generator=generator)).requires_grad_(True)
    none = torch.zeros(2, dtype=torch.bool)
    value, loss = delta_q(x, y, s, none), LogDeltaQ(2.5)(x, y, s, none)
    torch.testing.assert_close(loss, 2.5 * torch.log(1 + value / 2.5))
    (plain,) = torch.autograd.grad(value.sum(), x)
    (robust,) = torch.autograd.grad(loss.sum(), x)
    slope = (1 / (1 + value / 2.5))[s.batch, None]
    torch.testing.assert_close(robust, slope * plain)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_cannot_be_meant(scale):
    with pytest.raises(ValueError, match="expected a positive number"):
        LogDeltaQ(scale)


@pytest.mark.parametrize("pinned", [False, True])
def test_gradient_by_central_differences(pinned):
    s = structures([3, 4], fixed=[2], length=6.0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator), torch.randn(7, 3, generator=generator) + 6
    pin = torch.tensor([False, pinned])
    z = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(delta_q(z, y, s, pin).sum(), z)
    h = 1e-6
    for i in range(x.numel()):
        e = torch.zeros(x.numel())
        e[i] = h
        up, down = (delta_q(x + t * e.view_as(x), y, s, pin).sum() for t in (1, -1))
        assert float(g.view(-1)[i]) == pytest.approx(float(up - down) / (2 * h), abs=1e-7)
    if pinned:
        assert g[3:].sum(0).abs().max() < 1e-12


def test_gradient_is_zero_where_target_is_met():
    s = structures([3, 2])
    x = torch.randn(5, 3, requires_grad=True)
    target = x.detach().clone()
    target[0] += 1.0
    (g,) = torch.autograd.grad(delta_q(x, target, s, torch.zeros(2).bool()).sum(), x)
    assert torch.isfinite(g).all() and (g[3:] == 0).all() and g[0].norm() > 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_laws(seed, shift):
    """Lattice vectors, rigid shifts (where pinned), atom order and batching change nothing."""
    generator = torch.Generator().manual_seed(seed)
    s = structures([4, 3], length=5.0)
    x = torch.randn(7, 3, generator=generator) * 0.4
    y = x + 0.2 * torch.randn(7, 3, generator=generator)
    pin = torch.tensor([True, False])
    value = delta_q(x, y, s, pin)
    lattice = torch.randint(-2, 3, (7, 3), generator=generator) * 5.0
    torch.testing.assert_close(delta_q(x + lattice, y, s, pin), value, rtol=1e-9, atol=1e-9)
    moved = x + torch.tensor(shift) * (s.batch == 0)[:, None]
    torch.testing.assert_close(delta_q(moved, y, s, pin), value, rtol=1e-9, atol=1e-9)
    for k in range(2):
        mask = torch.arange(2) == k
        atoms = s.atoms_of(mask)
        atoms = atoms[torch.randperm(len(atoms), generator=generator)]
        alone = s.select(mask)
        alone = Structures(alone.batch, alone.free, s.masses[atoms], alone.cell, alone.pbc)
        one = delta_q(x[atoms], y[atoms], alone, pin[mask])
        torch.testing.assert_close(one[0], value[k], rtol=1e-12, atol=1e-12)
