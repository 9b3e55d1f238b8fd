"""RelaxNet's network against its symmetries, scipy and central differences, in double precision."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from scipy.special import spherical_jn

from fairchem_gdeq.models.relaxnet import RelaxNetBackbone
from fairchem_gdeq.models.relaxnet.geometry import edge_pairs, zonal
from fairchem_gdeq.models.relaxnet.radial import (
    RadialBasis,
    bessel_roots,
    envelope,
    spherical_bessel,
)
from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.relaxnet.paths import restless


def potential(model, structures):
    """Energies [s] and forces [n, 3]."""
    out = model(small.batch(structures))
    return out["energy"]["energy"], out["forces"]["forces"]


def parts(model, structures):
    """Embeddings [n, c] and velocities u(0) [n, 3]."""
    data = small.batch(structures)
    geometry = model.backbone.measure(model.backbone.graph(data), data.pos)
    h = model.backbone.encode(data.atomic_numbers, geometry)
    return h, model.backbone.velocity(h, geometry)


def test_spherical_bessel_functions_are_scipys():
    x = torch.linspace(0.5, 30, 50, dtype=torch.float64)
    found = spherical_bessel(x, 4)
    for order in range(5):
        expected = spherical_jn(order, x.numpy())
        np.testing.assert_allclose(found[:, order], expected, rtol=1e-7, atol=1e-12)


def test_radial_functions_vanish_at_the_cutoff():
    roots = bessel_roots(3, 5)
    assert torch.allclose(roots[0], torch.pi * torch.arange(1, 6, dtype=torch.float64))
    for order, row in enumerate(roots):
        assert (np.diff(row) > 0).all()
        assert np.abs(spherical_jn(order, row.numpy())).max() < 1e-12
    basis = RadialBasis(["bessel", "gaussian"], 5, 4.2, 3).double()
    assert basis(torch.tensor([1.0, 2.0]).double()).shape == (2, basis.width) == (2, 25)
    assert basis(torch.tensor([4.2]).double())[:, :20].abs().max() < 1e-5
    with pytest.raises(
        ValueError, match=r"radial=\['sine'\]: expected one or both of bessel, gaus"
    ):
        RadialBasis(["sine"], 5, 4.2, 3)


def test_the_envelope_fades_with_two_derivatives():
    r = torch.tensor(4.2 - 1e-9, dtype=torch.float64, requires_grad=True)
    value = envelope(r, 4.2)
    (slope,) = torch.autograd.grad(value, r, create_graph=True)
    (bend,) = torch.autograd.grad(slope, r)
    assert all(abs(each.item()) < 1e-6 for each in (value, slope, bend))
    assert envelope(torch.tensor([0.0, 5.0]), 4.2).tolist() == [1.0, 0.0]


def test_zonal_harmonics_are_legendre_polynomials_of_the_angle():
    model, data = restless(), small.batch(small.silicon(1))
    geometry = model.backbone.measure(model.backbone.graph(data), data.pos)
    one, other = edge_pairs(geometry, len(data.pos))
    target, lengths = geometry.graph.target, geometry.lengths
    number = torch.bincount(target[lengths < 3.2], minlength=len(data.pos))
    assert len(one) == int((number * (number - 1)).sum()) > 50
    assert torch.equal(target[one], target[other]) and bool((one != other).all())
    cosine = (geometry.units[one] * geometry.units[other]).sum(-1)
    expected = torch.stack([torch.ones_like(cosine), cosine, (3 * cosine**2 - 1) / 2], dim=-1)
    torch.testing.assert_close(zonal(geometry, one, other, 2), expected)


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_turns_and_shifts_with_the_structure(mirrored):
    model, (atoms,) = restless(), small.silicon(1)
    turn = Rotation.random(random_state=1).as_matrix() * (-1 if mirrored else 1)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn.T)
    turned.positions = atoms.positions @ turn.T + [3.0, -40.0, 0.7]  # and out of the cell
    energy, forces = potential(model, [atoms])
    after, turned_forces = potential(model, [turned])
    matrix = torch.tensor(turn)
    torch.testing.assert_close(after, energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(turned_forces, forces @ matrix.T, rtol=0, atol=1e-9)
    assert forces.norm() > 1e-2
    (h, u), (h_after, u_after) = parts(model, [atoms]), parts(model, [turned])
    torch.testing.assert_close(h_after, h, rtol=0, atol=1e-10)
    torch.testing.assert_close(u_after, u @ matrix.T, rtol=0, atol=1e-10)
    assert u.norm() > 1e-2


def test_the_order_of_atoms_makes_no_difference():
    model, (atoms,) = restless(), small.silicon(1)
    order = np.random.default_rng(0).permutation(len(atoms))
    energy, forces = potential(model, [atoms])
    after, permuted = potential(model, [atoms[order]])
    torch.testing.assert_close(after, energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(permuted, forces[order], rtol=0, atol=1e-9)


def test_structures_of_a_batch_do_not_feel_each_other():
    model, structures = restless(), small.silicon(3)
    energy, forces = potential(model, structures)
    singles = [potential(model, [atoms]) for atoms in structures]
    torch.testing.assert_close(energy, torch.cat([e for e, _ in singles]), rtol=0, atol=1e-10)
    torch.testing.assert_close(forces, torch.cat([f for _, f in singles]), rtol=0, atol=1e-9)


def test_forces_are_central_differences_of_the_energy():
    model, (atoms,) = restless(), small.silicon(1)
    _, forces = potential(model, [atoms])
    step = 1e-4
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            ends.append(float(potential(model, [moved])[0]))
        assert float(forces[atom, axis]) == pytest.approx(-(ends[0] - ends[1]) / 2 / step, rel=1e-6)


def test_energy_and_forces_are_smooth_where_neighbours_enter():
    """At the cutoff of pairs, and with three atoms at that of triplets."""
    model = restless()
    for distance, others in ((4.2, []), (3.2, [[0, 2.4, 0]])):
        sides = []
        for end in (distance - 1e-6, distance + 1e-6):
            atoms = Atoms(f"Si{2 + len(others)}", [[0, 0, 0], [end, 0, 0], *others], cell=[40] * 3)
            sides.append(potential(model, [atoms]))
        assert abs(float(sides[0][0] - sides[1][0])) < 1e-5
        assert (sides[0][1] - sides[1][1]).abs().max() < 1e-5


def test_parallel_edges_have_finite_second_derivatives():
    """A straight chain, where the second vector of Gram and Schmidt vanishes; and one atom alone."""
    model = restless()
    chain = Atoms("Si3", [[0, 0, 0], [2.4, 0, 0], [4.8, 0, 0]], cell=[40] * 3)
    alone = Atoms("Si", [[0, 0, 0]], cell=[40] * 3)
    _, forces = potential(model.train(), [chain, alone])
    forces.square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 20 and all(bool(torch.isfinite(g).all()) for g in grads)
    assert forces[-1].abs().max() == 0


def test_references_are_a_least_squares_fit():
    head = copy.deepcopy(restless().output_heads.energy)
    counts = torch.zeros(4, 119)
    counts[:, 14] = torch.tensor([8, 7, 6, 8])
    counts[:, 32] = torch.tensor([0, 1, 1, 2])
    head.fit_references(counts, counts[:, 14] * -5.0 + counts[:, 32] * -3.0)
    assert head.references[[14, 32]].tolist() == pytest.approx([-5.0, -3.0], rel=1e-6)
    assert head.references[[0, 6]].abs().max() < 1e-9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evolution": "both"}, "evolution='both': choose one of explicit, implicit"),
        ({"duration": 0.0}, "duration=0.0: expected a time above 0"),
        ({"zonal_lmax": 3}, "zonal_lmax=3: expected at most lmax=2"),
        ({"triplet_cutoff": 9.0}, "triplet_cutoff=9.0: expected a distance above 0 and at most"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RelaxNetBackbone(**settings)
