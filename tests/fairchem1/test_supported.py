"""What is refused, and that the reason is said."""

import copy

import pytest
import torch
from torch import nn

from fairchem_gdeq import versions
from fairchem_gdeq.fairchem1 import supported
from fairchem_gdeq.fairchem1.fields import OCPForceField, forces_of
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones

CONSERVING = [name for name in backbones.BACKBONES if "conserving" in name] + ["SchNet"]
GRADIENT = "gradient of its energy.*direct_forces: true"


def refused(config: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        supported.require_exact(backbones.build(config))


def test_forces_from_an_energy_that_is_not_twice_differentiable():
    refused(backbones.BACKBONES["GemNet-OC, triplets"] | {"direct_forces": False}, GRADIENT)
    small = {"hidden_channels": 8, "num_blocks": 1, "num_spherical": 2, "num_radial": 2}
    small |= {"out_emb_channels": 8, "int_emb_size": 8, "basis_emb_size": 4}
    refused({"model": "dimenetplusplus", **small}, GRADIENT)


@pytest.mark.parametrize("name", CONSERVING)
def test_only_a_gradient_pays_for_second_derivatives(name):
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of(name, data)
    with torch.no_grad():
        assert field(data.pos).grad_fn is None
    assert not data.pos.requires_grad
    assert field(data.pos.clone().requires_grad_(True)).grad_fn is not None
    assert not any(module.training for module in field.model.modules())


def test_models_without_forces():
    refused(
        backbones.BACKBONES["PaiNN"] | {"regress_forces": False}, r"no forces \(regress_forces: fal"
    )
    config = copy.deepcopy(backbones.BACKBONES["EquiformerV2"])
    del config["heads"]["forces"]
    data = backbones.batch(backbones.slabs())
    field = OCPForceField.frozen(backbones.build(config).float(), data, backbone_checks.denorm)
    with pytest.raises(ValueError, match=r"no output 'forces', only \['energy'\]"):
        field(data.pos)
    assert forces_of({"head": {"forces": torch.zeros(6)}}).shape == (2, 3)


def test_models_that_do_not_run_or_take_no_batch():
    refused({"model": "gp_gemnet_t", **backbones.GEMNET_T}, "does not run in fairchem-core")
    config = {"cutoff": 4.5, "max_neighbors": 20, "num_layers": 1, "lmax": 2, "mmax": 1}
    config |= {"sphere_channels": 8, "hidden_channels": 8, "edge_channels": 8}
    refused({"model": "escn_export", **config}, "Open the checkpoint as model escn")


def test_graph_parallelism(monkeypatch):
    monkeypatch.setattr(supported.gp_utils, "initialized", lambda: True)
    refused(backbones.BACKBONES["PaiNN"], "graph parallelism")


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_the_first_element_that_is_not_known(name):
    """As the model itself finds: the one before runs, and this one does not."""
    model = backbones.build(backbones.BACKBONES[name]).float()
    limit = supported.element_limit(model)
    assert limit is not None
    data = backbones.batch(backbones.slabs())
    data.atomic_numbers[-1] = limit - 1
    with torch.no_grad():
        model(data.clone())
        data.atomic_numbers[-1] = limit
        with pytest.raises((IndexError, AssertionError)):
            model(data)


def test_unknown_backbone():
    with pytest.raises(ValueError, match=r"Linear: how its neighbours.*GemNetOC"):
        supported.require_exact(nn.Linear(1, 1))


@pytest.mark.parametrize("found", ["2.24.0", "1.1.0", "1.11.0", None])
def test_other_versions(monkeypatch, found):
    monkeypatch.setattr(versions, "installed_version", lambda: found)
    with pytest.raises(ImportError, match=r"fairchem-core 1\.10\.x, found"):
        versions.require_version(1)
