"""The neural ODE against scipy's solver, central differences and itself, in double precision."""

import builtins

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

pytest.importorskip("torchdiffeq")

from fairchem_gdeq.extras import require
from fairchem_gdeq.models.relaxnet.backbone import EVOLUTIONS
from fairchem_gdeq.relaxnet import dynamics
from fairchem_gdeq.relaxnet.dynamics import Evolution, Rate
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS
from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.relaxnet.paths import restless, structures_of

BOTH = pytest.mark.parametrize("evolution", EVOLUTIONS)


def evolved(model, structures, **settings):
    """The path of a batch, with gradients."""
    data = small.batch(structures)
    return Evolution(**settings)(model, data, structures_of(data))


@BOTH
def test_its_path_is_scipys(evolution):
    """The right side is the model's, the integrator is another."""
    model, data = restless(evolution=evolution, duration=2.0), small.batch(small.silicon(1))
    how = Evolution(frames=3, steps=2)
    with torch.no_grad():
        path = how(model, data, structures_of(data))
        rate = Rate(model, data, structures_of(data))
        start = rate.start()
        sizes = [each.numel() for each in start]

        def right_side(time, flat):
            parts = torch.tensor(flat).split(sizes)
            state = tuple(p.view(each.shape) for p, each in zip(parts, start, strict=True))
            rates = rate(torch.tensor(time), state)
            return torch.cat([each.flatten() for each in rates]).numpy()

        flat = torch.cat([each.flatten() for each in start]).numpy()
        found = solve_ivp(right_side, (0, 1), flat, rtol=1e-5, atol=1e-7, t_eval=[0, 0.5, 1])
    expected = found.y.T[:, : sizes[0]].reshape(3, -1, 3)
    assert np.abs(expected[-1] - expected[0]).max() > 0.05
    np.testing.assert_allclose(path.positions.numpy(), expected, atol=2e-4)


@BOTH
def test_forces_of_a_frame_are_central_differences_of_its_energy(evolution):
    """With explicit evolution at embeddings that stay as they are."""
    model, data = restless(evolution=evolution), small.batch(small.silicon(1))
    rate = Rate(model, data, structures_of(data))
    with torch.no_grad():
        x, *others = rate.start()
        _, forces = rate.at((x, *others))
        step = 1e-4
        for atom, axis in ((1, 0), (3, 2)):
            move = torch.zeros_like(x)
            move[atom, axis] = step
            high, low = (float(rate.at((x + s * move, *others))[0]) for s in (1, -1))
            assert float(forces[atom, axis]) == pytest.approx((low - high) / 2 / step, rel=1e-6)
    assert forces.abs().max() > 1e-3


@BOTH
def test_the_adjoint_has_the_gradient_of_backpropagation(evolution):
    """Up to the discretization, which is fine here."""
    grads = []
    for adjoint in (False, True):
        model = restless(evolution=evolution, layers=1)
        path = evolved(model, small.silicon(1), frames=2, steps=4, adjoint=adjoint)
        (path.positions[-1].sin().sum() + path.energies.sum()).backward()
        grads.append([p.grad for p in model.parameters()])
    reached = [(a, b) for a, b in zip(*grads, strict=True) if a is not None]
    direct, other = (torch.cat([each.flatten() for each in p]) for p in zip(*reached, strict=True))
    assert direct.norm() > 0.1
    assert (direct - other).norm() < 1e-4 * direct.norm()


@BOTH
def test_a_gradient_is_that_of_central_differences(evolution):
    model, data = restless(evolution=evolution, duration=2.0), small.batch(small.silicon(1))
    how = Evolution(frames=3)

    def value():
        path = how(model, data, structures_of(data))
        return path.positions[-1].sin().sum() + (path.forces**2).sum() + path.energies.sum()

    value().backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None]
    assert missed == []  # a run could not go on from its checkpoint
    for parameter in (model.backbone.push[0].weight, model.output_heads.energy.energy[0].weight):
        step, change = 1e-5, torch.zeros_like(parameter)
        change[0, 0] = step
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * change
                ends.append(float(value()))
                parameter -= sign * change
        assert float(parameter.grad[0, 0]) == pytest.approx(
            (ends[0] - ends[1]) / 2 / step, rel=1e-5
        )


def test_it_turns_with_the_structure():
    model, (atoms,) = restless(), small.silicon(1)
    turned = atoms.copy()
    turned.rotate(33.0, (1.0, 2.0, 0.5), rotate_cell=True)
    before, after = (evolved(model, [each]) for each in (atoms, turned))
    matrix = torch.tensor(np.linalg.solve(atoms.cell.array, turned.cell.array))
    torch.testing.assert_close(after.positions, before.positions @ matrix, rtol=0, atol=1e-8)
    torch.testing.assert_close(after.energies, before.energies, rtol=0, atol=1e-8)


@BOTH
def test_structures_of_a_batch_evolve_alone(evolution):
    model, structures = restless(evolution=evolution), small.silicon(2)
    with torch.no_grad():
        together = evolved(model, structures, frames=3)
        singles = [evolved(model, [each], frames=3) for each in structures]
    for name, dim in (("positions", 1), ("energies", 1), ("forces", 1)):
        expected = torch.cat([getattr(each, name) for each in singles], dim)
        torch.testing.assert_close(getattr(together, name), expected, rtol=0, atol=1e-9)
    assert together.evaluations == 4 * 2 + 3
    assert (together.positions[-1] - together.positions[0]).norm() > 0.1


def test_fixed_atoms_never_move():
    fixed = (0, 2, 5)
    path = evolved(restless(duration=5.0), small.silicon(1, fixed=fixed))
    moved = (path.positions - path.positions[0]).abs().amax((0, 2))
    assert moved[list(fixed)].max() == 0 and moved[[1, 3, 4]].min() > 1e-3
    assert path.forces[:, list(fixed)].abs().max() == 0


def test_the_wide_graph_changes_nothing(monkeypatch):
    """Paths on which atoms go far, with a graph of each evaluation's own and with one for several."""
    paths, built = [], []
    for skin in (0.0, 0.5):
        monkeypatch.setattr(dynamics, "SKIN", skin)
        model, calls = restless(duration=25.0), []
        own = model.backbone.graph
        model.backbone.graph = lambda *a, own=own, calls=calls: (calls.append(1), own(*a))[1]
        with torch.no_grad():
            paths.append(evolved(model, small.silicon(1)))
        built.append(len(calls))
    torch.testing.assert_close(paths[0].positions, paths[1].positions, rtol=0, atol=1e-9)
    assert (paths[0].positions[-1] - paths[0].positions[0]).norm(dim=-1).max() > 0.25
    assert 1 < built[1] < built[0]


def test_a_structure_that_is_lost_stays_at_its_start_and_the_others_go_on():
    """Its velocity is not a number."""
    structures = small.silicon(2)
    data = small.batch(structures)
    data.mass, data.pos_relaxed = structures_of(data).masses, data.pos + 0.1
    is2rs, model = RelaxNetIS2RS(how=Evolution(frames=3)), restless()
    with torch.no_grad():
        expected = is2rs.evolve(model, data)
        push = model.backbone.velocity
        first = (data.batch == 0)[:, None]
        model.backbone.velocity = lambda *given: torch.where(first, torch.nan, push(*given))
        path = is2rs.evolve(model, data)
        assert is2rs.lost(data, path).tolist() == [True, False]
        one, two = is2rs.records_of(data, path)
        records, ends = is2rs.relax(model, [], data)
    assert one.diverged and not one.converged and not two.diverged and records[1] == two
    assert torch.equal(ends[data.batch == 0], data.pos[data.batch == 0])
    torch.testing.assert_close(ends[data.batch == 1], expected.positions[-1][data.batch == 1])


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="frames=1, steps=1: expected at least 2 frames"):
        Evolution(frames=1)
    data = small.batch(small.silicon(1))
    with pytest.raises(ValueError, match=r"expected a RelaxNetBackbone .* eSCNMDBackbone"):
        Evolution()(small.model("esen"), data, structures_of(data))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr("fairchem_gdeq.extras.import_module", lambda name: real("no_such"))
    with pytest.raises(ImportError, match=r"needs the package torchdiffeq, .*\[relaxnet\]"):
        require("torchdiffeq", "torchdiffeq", "relaxnet")
