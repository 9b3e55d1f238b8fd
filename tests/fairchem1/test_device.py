"""Every backbone of fairchem 1 on a device: forces, derivatives, and what is done with frozen graphs.

In single precision, as users run them. A GPU adds in another order, which leaves 1e-5 of a force; what
a model amplifies more than that would be a mistake of its own.
"""

import re

import pytest
import torch

from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones
from tests.census import is_ours
from tests.device.checks import CPU, assert_on, assert_same
from tests.fairchem1.test_waits import LIVE

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture
def device(device):
    """With torch_scatter's and torch_sparse's operators, which have kernels for CPU and CUDA alone."""
    if device.type != "fake":
        yield device
        return
    from fairchem_gdeq.testing.device.compiled import carry

    names = [schema.name for schema in torch._C._jit_get_all_schemas()]
    scatter = [n for n in names if re.match(r"torch_scatter::(scatter|segment|gather)_", n)]
    kept = [carry(*scatter), carry("torch_sparse::ind2ptr", "torch_sparse::ptr2ind")]
    yield device
    for library in kept:
        library._destroy()


def evaluated(name, device):
    """Whatever a force field is asked for, as numbers; the model and its graph stay on the device."""
    data = backbones.batch(backbones.slabs()).to(device)
    model = backbones.model(name).to(device)
    field = backbone_checks.OCPForceField.frozen(model, data, backbone_checks.denorm)
    operator = backbone_checks.operator_of(field)
    x = data.pos + 0.02 * torch.sin(7 * data.pos)
    out = {"forces": field(x).detach()}
    out["vjp"] = operator.vjp(x, torch.cos(3 * data.pos), accumulate=True)
    for part, parameter in model.named_parameters():
        if parameter.grad is not None:
            out[f"gradient of {part}"] = parameter.grad
    with torch.no_grad():
        out["unfrozen"] = field.unfreeze()(x)
        second = torch.tensor([False, True], device=device)
        one, mine = field.select(second), second[data.batch]
        out["selected"] = one(x[mine])
        out["joined"] = one.join([field.select(~second)])(torch.cat([x[mine], x[~mine]]))
        out["skin"] = field.skin()
        out["changed"] = field.edges_changed(data.pos + 0.3 * torch.sin(5 * data.pos))
    graph = field.graph
    assert_on(device, [out, graph.edge_index, graph.cell_offsets, graph.neighbors, graph.extra])
    return out


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_force_field(device, name):
    found, expected = evaluated(name, device), evaluated(name, CPU)
    assert_same(found, expected, **CLOSE)
    gradients = [value for key, value in expected.items() if key.startswith("gradient")]
    assert expected["vjp"].norm() > 0 and sum(g.norm() for g in gradients) > 0
    assert expected["changed"].any()


@pytest.mark.parametrize("name", LIVE)
def test_waits_of_an_evaluation(device, name):
    """Ours, copies and the indices of the host among them, which the CPU cannot tell from others."""
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    from fairchem_gdeq.testing.device.counting import counted

    data = backbones.batch(backbones.slabs(3)).to(device)
    field = backbone_checks.OCPForceField.frozen(
        backbones.model(name).to(device), data, backbone_checks.denorm
    )
    for each, allowed in ((field, 0), (field.unfreeze(), LIVE[name])):
        operator = backbone_checks.operator_of(each)
        evaluations = (each, lambda x, o=operator: o.vjp(x, torch.ones_like(x), accumulate=True))
        for evaluate in evaluations:
            evaluate(data.pos)  # what is derived from a graph once
            with counted(is_ours) as counts:
                evaluate(data.pos + 0.01)
            assert counts.waits.total() <= allowed, counts.waits
