"""Every backbone of fairchem 2 on a device: forces, derivatives, and what is done with frozen graphs.

In single precision, as users run them. A GPU adds in another order, which leaves 1e-5 of a force; what
a model amplifies more than that would be a mistake of its own.
"""

import pytest
import torch

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.testing.fairchem2 import backbones, small
from tests.census import is_ours
from tests.device.checks import CPU, assert_on, assert_same

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def evaluated(name, device):
    """Whatever a force field is asked for, as numbers; the model and its graph stay on the device."""
    data = small.batch(backbones.structures(name), double=False)
    built = backbones.model(name, False, data).to(device)
    data = data.to(device)
    operator = IS2RS(alpha=1.0, cap=None).operator(built, backbones.tasks(name), data)
    x, field = data.pos + 0.02 * torch.sin(7 * data.pos), operator.field
    lam = torch.cos(3 * data.pos)
    out = {"forces": field(x).detach(), "vjp": operator.vjp(x, lam, accumulate=True)}
    for part, parameter in built.named_parameters():
        if parameter.grad is not None:
            out[f"gradient of {part}"] = parameter.grad
    with torch.no_grad():
        out["unfrozen"] = field.unfreeze()(x)
        second = torch.tensor([False, True], device=device)
        one, atoms = field.select(second), operator.structures.atoms_of(second)
        out["selected"] = one(x[atoms])
        joined = one.join([field.select(~second)])
        out["joined"] = joined(torch.cat([x[atoms], x[~second[data.batch]]]))
        out["frozen anew"] = field.freeze(x)(x)
        if field.has_graph:
            out["skin"] = field.skin()
            out["changed"] = field.edges_changed(data.pos + 0.2 * torch.sin(5 * data.pos))
            graph = field.batch
            assert_on(device, [graph.edge_index, graph.cell_offsets, graph.nedges, graph.pos])
    assert_on(device, out)
    return out


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_force_field(device, name):
    found, expected = evaluated(name, device), evaluated(name, CPU)
    assert_same(found, expected, **CLOSE)
    gradients = [value for key, value in expected.items() if key.startswith("gradient")]
    assert expected["vjp"].norm() > 0 and sum(g.norm() for g in gradients) > 0
    if "changed" in expected:
        assert expected["changed"].any()


def test_structures_that_cannot_have_a_graph_are_named(device):
    data = small.batch(small.silicon(2), double=False).to(device)
    data.cell = torch.zeros_like(data.cell)
    with pytest.raises(ValueError, match=r"\['s0', 's1'\] are periodic"):
        HydraForceField.frozen(small.model("esen", double=False).to(device), small.tasks(), data)


@pytest.mark.parametrize("name", ["eSEN direct (OC25)", "EScAIP, soft kNN", "AllScAIP, soft kNN"])
def test_structures_leave_without_a_wait(device, name):
    """A frozen graph is asked once how many edges its structures have, a live field nothing at all."""
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    from fairchem_gdeq.testing.device.counting import counted

    data = small.batch(backbones.structures(name, 4), double=False).to(device)
    field = HydraForceField.frozen(
        backbones.model(name, False).to(device), backbones.tasks(name), data
    )
    live = HydraForceField.unfrozen(field.model, backbones.tasks(name), data)
    for whole, allowed in ((field, 1), (live, 0)):
        with counted() as first:
            part = whole.select(torch.tensor([True, False, True, True]))
        with counted() as later:
            less = part.select(torch.tensor([True, False, True]))
            less.join([part])
        assert sum(first.waits.values()) <= allowed, first.waits
        assert not later.waits, later.waits
    at = less.batch.pos
    mine = torch.tensor([0, 3])
    kept = torch.isin(data.batch, mine.to(device))
    torch.testing.assert_close(less(at).cpu(), live(data.pos)[kept].cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["eSEN direct (OC25)", "EScAIP, soft kNN", "AllScAIP, soft kNN"])
@torch.no_grad()
def test_an_evaluation_copies_nothing_while_the_device_waits(device, name):
    """What of a graph is worked out in Python is sent without a wait, frozen and live."""
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    from fairchem_gdeq.testing.device.counting import counted

    data = small.batch(backbones.structures(name, 3), double=False).to(device)
    model = backbones.model(name, False).to(device)
    field = HydraForceField.frozen(model, backbones.tasks(name), data)
    for each in (field, field.unfreeze()):
        each(data.pos)  # fairchem's own caches
        with counted(is_ours) as counts:
            each(data.pos + 0.01)
        assert not {"_to_copy", "copy_"} & set(counts.waits), counts.waits
        assert field is not each or not counts.waits
