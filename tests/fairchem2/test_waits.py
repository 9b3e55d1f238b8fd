"""What does not change while structures move is worked out once: no waits of ours per evaluation."""

import pytest
import torch

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.graphs import EdgeList
from fairchem_gdeq.testing.fairchem2 import backbones, small
from tests.census import census

# Waits of ours at a live evaluation. EScAIP's table has a fixed width, which one number is asked for.
LIVE = {
    "eSEN direct (OC25)": 0,
    "eSCN-MD, s2 and grid": 0,
    "UMA, mixture of experts": 0,
    "EScAIP, soft kNN": 1,
    "EScAIP, hard kNN": 1,
    "AllScAIP, soft kNN": 0,
}


def plain_builder(monkeypatch, field):
    """fairchem's compiled builder as the Python function that it was, so that it is not ours."""
    if not isinstance(field.graphs, EdgeList):
        module = field.graphs.module
        built = getattr(module, "build_radius_graph")  # noqa: B009
        monkeypatch.setattr(
            module, "build_radius_graph", getattr(built, "_torchdynamo_inline", built)
        )


@pytest.mark.parametrize("name", LIVE)
@torch.no_grad()
def test_waits_of_an_evaluation(name, monkeypatch):
    data = small.batch(backbones.structures(name, 3), double=False)
    frozen = HydraForceField.frozen(backbones.model(name, False), backbones.tasks(name), data)
    plain_builder(monkeypatch, frozen)
    keep = torch.tensor([True, False, True])
    chosen = torch.cat([data.pos, data.pos[keep[data.batch]]])
    live = frozen.unfreeze()
    cases = [(frozen, data.pos, 0), (live, data.pos, LIVE[name])]
    cases += [(f.join([f.select(keep)]), chosen, w) for f, _, w in cases]
    for field, positions, allowed in cases:
        field(positions)  # fairchem's own caches
        for _ in range(3):
            with census() as counted:
                field(positions + 0.01)
            assert sum(counted.waits.values()) <= allowed, counted.waits
            assert not counted.algebra
            tables = field.live and "image" in field.batch  # their edges are counted in Python
            assert counted.constants == (1 if tables else 0)


@pytest.mark.parametrize("name", LIVE)
def test_selecting_and_joining_invert_nothing(name):
    """How they wait is counted where masks of the host are told from others: tests/device/fairchem2."""
    data = small.batch(backbones.structures(name, 3), double=False)
    field = HydraForceField.frozen(backbones.model(name, False), backbones.tasks(name), data)
    with census() as counted:
        field.join([field.select(torch.tensor([True, False, True]))])
    assert not counted.algebra, counted.algebra


def test_the_cell_is_inverted_once_for_a_field():
    """With as many live evaluations, selections and joins as there may be."""
    data = small.batch(small.silicon(3))
    with census() as counted:
        field = HydraForceField.unfrozen(small.model("esen"), small.tasks(), data)
    assert set(counted.algebra.values()) == {1}, counted.algebra
    first = field(data.pos)
    keep = torch.tensor([False, True, True])
    with census() as counted:
        assert torch.equal(field(data.pos), first)
        part = field.select(keep)
        torch.testing.assert_close(part(data.pos[keep[data.batch]]), first[keep[data.batch]])
        part.join([field])(torch.cat([data.pos[keep[data.batch]], data.pos]))
    assert not counted.algebra
    inverse = field.batch.inverse_cell @ data.cell
    torch.testing.assert_close(inverse, torch.eye(3).double().expand(3, 3, 3), rtol=0, atol=1e-12)


def test_molecules_seen_through_their_boundaries_cost_one_wait():
    """Only where the model sees more than there is, and it is refused if that matters."""
    from ase import Atoms

    config = small.ESEN["backbone"] | {"always_use_pbc": True, "radius_pbc_version": 1}
    from fairchem.core.models.base import HydraModel

    model = HydraModel(backbone=config, heads=small.ESEN["heads"]).eval()
    far = [Atoms("Si2", positions=[[3, 3, 3], [3, 5, 3]], cell=[12] * 3)]
    data = small.batch(far, double=False)
    field = HydraForceField.unfrozen(model, small.tasks(), data)
    field(data.pos)
    with census() as counted:
        field(data.pos)
    assert counted.waits == {"_local_scalar_dense": 1}
    near = small.batch([Atoms("Si2", positions=[[1, 1, 1], [1, 3, 1]], cell=[4] * 3)], double=False)
    with pytest.raises(ValueError, match="not periodic in every direction"):
        HydraForceField.unfrozen(model, small.tasks(), near)(near.pos)
