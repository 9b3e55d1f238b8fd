"""L-BFGS whose first guess of the Hessian knows bonds: against dense algebra, ASE and what must hold.

That it is dense BFGS from that guess stands in ``test_solvers``.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from ase.neighborlist import natural_cutoffs, neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.relax import LBFGS, Operator, Structures, solve
from fairchem_gdeq.relax.solvers.bonds import (
    NON_METALS,
    bonds,
    coupling,
    stretches,
    without_stretches,
)
from fairchem_gdeq.testing.fields import random_batch

NAMES = ("CH3OH", "H2O", "C6H6", "N2", "SiH4", "CH4")


def structures_of(images, fixed=()):
    """A batch; atoms with these indices in it are fixed."""
    free = torch.ones(sum(map(len, images)), dtype=torch.bool)
    free[list(fixed)] = False
    return Structures(
        batch=torch.repeat_interleave(torch.tensor([len(a) for a in images])),
        free=free,
        masses=torch.tensor(np.concatenate([a.get_masses() for a in images])),
        cell=torch.tensor(np.array([a.cell[:] for a in images])),
        pbc=torch.tensor(np.array([a.pbc for a in images])),
        numbers=torch.tensor(np.concatenate([a.numbers for a in images])),
    )


def positions_of(images):
    return torch.tensor(np.concatenate([a.positions for a in images]))


def wrapped(atoms):
    """In a periodic cell, with an atom of the molecule beyond its edge."""
    atoms.set_cell([9.0, 10.0, 11.0])
    atoms.pbc = True
    atoms.wrap()
    return atoms


def random_numbers(n, seed):
    return torch.tensor(np.random.default_rng(seed).choice([1, 6, 8, 22], n))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("periodic", [False, True])
def test_bonds_are_those_of_ase(name, periodic):
    atoms = molecule(name)
    if periodic:
        atoms = wrapped(atoms)
    found = {(bond.i, bond.j) for bond in bonds(structures_of([atoms]), positions_of([atoms]))}
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.3))
    able = np.isin(atoms.numbers, NON_METALS)
    pairs = zip(i.tolist(), j.tolist(), strict=True)
    assert found == {(a, b) for a, b in pairs if a < b and able[a] and able[b]}
    assert len(found) == {"CH3OH": 5, "H2O": 2, "C6H6": 12, "N2": 1, "SiH4": 0, "CH4": 4}[name]


def test_a_metal_has_none_and_a_bond_between_fixed_atoms_does_not_count():
    metal = fcc111("Pt", (2, 2, 2), vacuum=5.0)
    water = molecule("H2O", vacuum=4.0)
    images = [metal, water]
    atoms = positions_of(images)
    assert len(list(bonds(structures_of(images), atoms))) == 2
    assert {bond.structure for bond in bonds(structures_of(images), atoms)} == {1}
    held = structures_of(images, fixed=[8, 9])  # the oxygen and one hydrogen
    assert [(bond.i, bond.j) for bond in bonds(held, atoms)] == [(8, 10)]
    assert not list(bonds(replace(held, numbers=None), atoms))


def test_rows_are_the_derivatives_of_bond_lengths():
    images = [wrapped(molecule("CH3OH")), Atoms("Pt"), molecule("H2O")]
    s, x = structures_of(images, fixed=[7]), positions_of(images)
    b, shift = stretches(s, x), 1e-6
    assert b.shape == (5, len(x), 3)
    rows = dict.fromkeys(range(3), 0)
    for bond in bonds(s, x):
        mine = b[rows[bond.structure]] * (s.batch == bond.structure)[:, None]
        rows[bond.structure] += 1
        for atom, sign in ((bond.i, 1), (bond.j, -1)):
            for axis in range(3):
                moved = bond.apart.clone()
                moved[axis] += sign * shift
                slope = (moved.norm() - bond.apart.norm()) / shift
                assert abs(mine[atom, axis] - slope * s.free[atom]) < 1e-5
    assert rows == {0: 5, 1: 0, 2: 2}
    assert b[:, s.batch == 1].abs().max() == 0 and b[2:, s.batch == 2].abs().max() == 0


def test_the_inverse_of_p_is_dense_algebra():
    images = [molecule("CH3OH"), Atoms("Pt"), molecule("H2O")]
    s, x = structures_of(images, fixed=[2]), positions_of(images)
    b = stretches(s, x)
    vector = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(1)).double()
    found = without_stretches(vector, b, coupling(b, 7.0, s.batch, 3), s.batch, 3)
    for k in range(3):
        own = s.batch == k
        rows = b[:, own].flatten(1)
        p = torch.eye(rows.shape[1]).double() + 7.0 * rows.T @ rows
        expected = torch.linalg.solve(p, vector[own].flatten())
        torch.testing.assert_close(found[own].flatten(), expected, rtol=1e-10, atol=1e-12)


class Springs:
    """Stiff bonds and a soft hold at its place for every atom: a molecule on a surface in small."""

    translation_invariant, rotation_equivariant = False, False

    def __init__(self, i, j, lengths, places):
        self.i, self.j, self.lengths, self.places = i, j, lengths, places

    def __call__(self, x):
        apart = x[self.i] - x[self.j]
        length = apart.norm(dim=-1, keepdim=True)
        pull = 30.0 * (length - self.lengths) * apart / length
        return (self.places - x).index_add(0, self.i, -pull).index_add(0, self.j, pull)

    def freeze(self, positions):
        return self

    def unfreeze(self):
        return self


def test_stiff_bonds_on_a_soft_hold_take_fewer_evaluations_to_the_same_end():
    atoms = molecule("C6H6")
    x, s = positions_of([atoms]), structures_of([atoms])
    found = list(bonds(s, x))
    i, j = (torch.tensor([getattr(bond, name) for bond in found]) for name in "ij")
    lengths = torch.stack([bond.apart.norm() for bond in found])[:, None] * 1.03
    moved = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    operator = Operator.build(Springs(i, j, lengths, x), s, 0.05, cap=None)
    runs = [
        solve(operator, moved, LBFGS(softest=1.0, bonds=b), fmax=1e-4, max_steps=500)
        for b in (0.0, 30.0)
    ]
    assert all(run.converged.all() for run in runs)
    assert runs[1].evaluations < 0.7 * runs[0].evaluations
    torch.testing.assert_close(runs[1].positions, runs[0].positions, rtol=0, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations([0, 1, 2]), seed=st.integers(0, 20), fixed=st.sets(st.integers(0, 8)))
def test_batch_order_and_company_do_not_matter_and_fixed_atoms_stay(order, seed, fixed):
    operator, x, _ = random_batch("site", [4, 2, 3], seed=seed, alpha=0.2, fixed=sorted(fixed))
    x = 0.5 * x
    s = replace(operator.structures, numbers=random_numbers(9, seed))
    operator = replace(operator, structures=s)
    solver = LBFGS(bonds=7.0, softest=0.1)
    together = solve(operator, x, solver, fmax=1e-6, max_steps=3000)
    held = sorted(fixed)
    assert torch.equal(together.positions[held], x[held])
    masks = [torch.arange(3) == k for k in order]
    parts = [operator.select(mask) for mask in masks]
    atoms = torch.cat([s.atoms_of(mask) for mask in masks])
    turned = solve(parts[0].join(parts[1:]), x[atoms], solver, fmax=1e-6, max_steps=3000)
    torch.testing.assert_close(turned.positions, together.positions[atoms], rtol=0, atol=1e-6)


def test_structures_of_different_age_and_bonds_share_a_state():
    """One that has made steps, joined by one that has not, goes on as it would alone."""
    operator, x, _ = random_batch("site", [4, 5], alpha=0.1)
    s = replace(operator.structures, numbers=torch.tensor([6, 1, 1, 22, 8, 1, 6, 1, 1]))
    operator, x = replace(operator, structures=s), 0.4 * x
    old, new = (operator.select(torch.arange(2) == k) for k in range(2))
    solver, a, b = LBFGS(bonds=7.0), x[:4], x[4:]
    state = solver.start(old, a)
    for _ in range(3):
        move, state = solver.propose(old, a, old.forces(a), state)
        a = a + move
    first = solver.start(new, b)
    assert len(state.stretches) != len(first.stretches)
    both = state.join([first])
    move, _ = solver.propose(operator, torch.cat([a, b]), operator.forces(torch.cat([a, b])), both)
    alone = solver.propose(old, a, old.forces(a), state)[0]
    other = solver.propose(new, b, new.forces(b), first)[0]
    torch.testing.assert_close(move, torch.cat([alone, other]), rtol=1e-9, atol=1e-12)
