"""Frozen-graph fields of real fairchem models: finite differences, selection, graphs."""

import pytest
import torch

from fairchem_gdeq.fairchem2.fields import HydraForceField, force_task
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax.guidance import guidance_by_stored_graph, guidance_by_sweep
from fairchem_gdeq.relax.loss import delta_q
from fairchem_gdeq.testing.fairchem2 import small


@pytest.mark.parametrize("kind", small.MODELS)
@pytest.mark.parametrize("fixed", [(), (0, 2)])
def test_vjp_against_central_differences(kind, fixed):
    """DESIGN section 3: at most 1e-6 relative in double precision, for every backbone."""
    data = small.batch(small.silicon(2, fixed=fixed))
    operator = IS2RS(alpha=0.05, cap=None).operator(small.model(kind), small.tasks(), data)
    lam = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0)).double()
    analytic = operator.vjp(data.pos, lam)
    numeric, h = torch.zeros_like(lam), 1e-5
    with torch.no_grad():
        for i in range(lam.numel()):
            e = torch.zeros(lam.numel(), dtype=torch.float64)
            e[i] = h
            e = e.view_as(lam)
            difference = operator(data.pos + e) - operator(data.pos - e)
            numeric.view(-1)[i] = (difference * lam).sum() / (2 * h)
    numeric[~operator.structures.free] = 0
    # Against the part that the forces contribute: lam itself would hide an error in them.
    own = torch.where(operator.structures.free[:, None], lam, 0.0)
    assert (analytic - numeric).norm() / (numeric - own).norm() < 1e-6


@pytest.mark.parametrize("kind", small.MODELS)
def test_sweep_equals_stored_graph_through_a_real_model(kind):
    data = small.batch(small.silicon(2))
    model = small.model(kind)
    operator = IS2RS(alpha=0.05).operator(model, small.tasks(), data)
    target = data.pos + 0.1
    target[0] += 0.3
    results = []
    for guide in (guidance_by_sweep, guidance_by_stored_graph):
        model.zero_grad()
        guide(
            operator,
            data.pos,
            6,
            lambda x: delta_q(x, target, operator.structures, operator.pin),
            1.0,
        )
        results.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (results[0] - results[1]).norm() / results[1].norm() < 1e-10
    assert results[1].norm() > 0


@pytest.mark.parametrize("kind", small.MODELS)
def test_forces_are_the_models_own(kind):
    data = small.batch(small.silicon(3))
    model, tasks = small.model(kind), small.tasks()
    field = HydraForceField.frozen(model, tasks, data)
    plain = 1.5 * model(data.clone())["forces"]["forces"]
    torch.testing.assert_close(field(data.pos), plain, rtol=1e-10, atol=1e-12)
    moved = data.pos + 0.05 * torch.randn_like(data.pos)
    live = HydraForceField.frozen(model, tasks, data).unfreeze()
    again = data.clone()
    again.pos = moved
    torch.testing.assert_close(
        live(moved), 1.5 * model(again)["forces"]["forces"], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("kind", small.MODELS)
def test_selected_structures_have_the_same_forces(kind):
    data = small.batch(small.silicon(4))
    field = HydraForceField.frozen(small.model(kind), small.tasks(), data)
    keep = torch.tensor([True, False, True, False])
    atoms = keep[data.batch]
    picked = field.select(keep)
    torch.testing.assert_close(
        picked(data.pos[atoms]), field(data.pos)[atoms], rtol=1e-9, atol=1e-11
    )
    assert picked.batch.sid == ["s0", "s2"]


def test_graph_of_positions_outside_the_cell():
    data = small.batch(small.silicon(3))
    field = HydraForceField.frozen(small.model("esen"), small.tasks(), data)
    shifts = torch.randint(-2, 3, data.pos.shape, generator=torch.Generator().manual_seed(0))
    outside = data.pos + shifts.double() * 5.463
    torch.testing.assert_close(field.freeze(outside)(outside), field(data.pos), rtol=0, atol=1e-9)


def test_changed_edges_are_counted():
    data = small.batch(small.silicon(2))
    field = HydraForceField.frozen(small.model("esen"), small.tasks(), data)
    assert field.edges_changed(data.pos).tolist() == [0, 0]
    moved = data.pos.clone()
    moved[0] += 0.9
    changed = field.edges_changed(moved)
    assert changed[0] > 0 and changed[1] == 0
    small_move = data.pos + 0.2 * field.skin().min() * torch.randn_like(data.pos).clamp(-1, 1)
    assert field.edges_changed(small_move).sum() == 0
    with pytest.raises(ValueError, match="holds no graph"):
        field.unfreeze().edges_changed(moved)
    fresh = field.freeze(data.pos).batch
    assert int(fresh.nedges.sum()) == fresh.edge_index.shape[1]


def test_force_task_must_be_unique():
    with pytest.raises(ValueError, match="exactly one task"):
        force_task([])


@pytest.mark.parametrize("kind", small.MODELS)
def test_every_evaluation_is_the_same_map(kind):
    """eSEN rolls its edge frames at random; bit-equal forces show that the field does not."""
    data = small.batch(small.silicon(3), double=False)
    field = HydraForceField.frozen(small.model(kind, double=False), small.tasks(), data)
    before = torch.random.get_rng_state()
    first = field(data.pos)
    assert all(torch.equal(first, field(data.pos)) for _ in range(3))
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's randomness was touched"
