"""What does not change while structures move is worked out once: no waits of ours per evaluation."""

import pytest
import torch

from fairchem_gdeq.fairchem1 import frames
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones
from tests.census import census

# At a live evaluation the device is asked whether a structure has no neighbours, which most of these
# models cannot evaluate; SCN also for the number of edges in its message blocks.
LIVE = {
    **{"EquiformerV2": 1, "eSCN": 1, "eSEN": 0, "SCN": 2},
    **{"GemNet-OC": 1, "GemNet-dT": 1, "PaiNN": 1},
}


@pytest.mark.parametrize("name", LIVE)
@torch.no_grad()
def test_waits_of_an_evaluation(name):
    data = backbones.batch(backbones.slabs(3))
    frozen = backbone_checks.field_of(name, data)
    keep = torch.tensor([True, False, True])
    chosen = torch.cat([data.pos, data.pos[keep[data.batch]]])
    live = frozen.unfreeze()
    cases = [(frozen, data.pos, 0), (live, data.pos, LIVE[name])]
    cases += [(f.join([f.select(keep)]), chosen, w) for f, _, w in cases]
    for field, positions, allowed in cases:
        field(positions)  # what is derived from a graph once
        for _ in range(2):
            with census() as counted:
                field(positions + 0.01)
            # GemNet-OC: no rows of its further graphs are marked before they are known.
            marks = 3 if name == "GemNet-OC" and allowed else 0
            assert sum(counted.waits.values()) <= allowed, counted.waits
            assert not counted.algebra and counted.constants <= marks


@pytest.mark.parametrize("name", ["EquiformerV2", "eSCN", "eSEN", "SCN"])
def test_frames_and_their_derivative_ask_for_no_norms(name):
    """PyTorch's exponential of a matrix does, in a forward and again in a backward pass."""
    data = backbones.batch(backbones.slabs())
    operator = backbone_checks.operator_of(backbone_checks.field_of(name, data))
    with census() as counted:
        operator.vjp(data.pos, torch.ones_like(data.pos))
    assert "linalg_matrix_exp" not in counted.waits


def test_generators_are_kept_for_each_device_and_precision():
    rotation = torch.randn(5, 3, generator=torch.manual_seed(0))
    frames._generators.cache_clear()
    single = frames.wigner_blocks(rotation, 3)
    for _ in range(3):
        again = frames.wigner_blocks(rotation, 3)
        assert all(torch.equal(a, b) for a, b in zip(single, again, strict=True))
    assert frames._generators.cache_info().misses == 3  # of degree 0 there are none
    double = frames.wigner_blocks(rotation.double(), 3)
    assert frames._generators.cache_info().misses == 6
    for a, b in zip(single, double, strict=True):
        assert a.dtype == torch.float32 and b.dtype == torch.float64
        torch.testing.assert_close(a, b.float())
