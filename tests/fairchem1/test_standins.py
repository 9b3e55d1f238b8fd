"""A fairchem 1 that does not call what stands in for its functions is noticed."""

import types

import pytest
import torch

from fairchem_gdeq.frozen.patching import NotCalled
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones

# What each family's forward pass must call, on the backbone or, after a dot, on a part of it.
CALLED = {
    "PaiNN": ["generate_graph"],
    "GemNet-dT": ["generate_graph"],
    "EquiformerV2": ["generate_graph", "_init_edge_rot_mat", "SO3_rotation.set_wigner"],
    "eSCN": ["generate_graph", "_init_edge_rot_mat"],
    "eSEN": ["generate_graph", "get_rotmat_and_wigner"],
    "SCN": ["generate_graph", "_rank_edge_distances", "_init_edge_rot_mat"],
    "GemNet-OC": ["get_graphs_and_indices", "calculate_quad_angles"],
}
# Without this one the next fails by itself, on what it left undone: loudly too.
LOUD = {("EquiformerV2", "_init_edge_rot_mat"), ("eSCN", "_init_edge_rot_mat")}
LOUD |= {("SCN", "_init_edge_rot_mat"), ("EquiformerV2", "set_wigner")}
CASES = [(name, method) for name, methods in CALLED.items() for method in methods]


class _Deaf:
    """Puts the class's own function behind whatever is set on the instance."""

    def __init__(self, function):
        self.function = function

    def __get__(self, instance, owner):
        return self if instance is None else types.MethodType(self.function, instance)

    def __set__(self, instance, value):
        raise AssertionError("stand-ins are set in the instance's dictionary")


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_replacement_that_is_not_called_is_an_error(name, method, monkeypatch):
    """A data descriptor of the class goes before the instance's own: the stand-in is not seen."""
    data = backbones.batch(backbones.structures(name))
    field = backbone_checks.field_of(name, data)
    before = field(data.pos)
    part, _, method = method.rpartition(".")
    backbone = field.graphs.backbone
    owner = type(getattr(backbone, part)[0] if part else backbone)
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, _Deaf(getattr(owner, method)))
        if (name, method) in LOUD:
            with pytest.raises((RuntimeError, IndexError)):
                field(data.pos)
        else:
            with pytest.raises(NotCalled, match=f"{owner.__name__}.{method} 0 times"):
                field(data.pos)
    torch.testing.assert_close(field(data.pos), before, rtol=1e-6, atol=1e-7)


def test_triplets_alone_have_no_quadruplet_angles():
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of("GemNet-OC, triplets", data)
    assert not field.graphs.backbone.quad_interaction and field(data.pos).isfinite().all()
