"""ResMLP against its equation, finite differences and plain fairchem.

Properties that it shares with ADAPT are tested for both in ``test_adapt``.
"""

import inspect

import numpy as np
import pytest
import torch
from torch.nn import functional

from fairchem_gdeq.models.resmlp import ResMLPBackbone
from fairchem_gdeq.testing.fairchem2 import small
from tests.models.test_adapt import forces, plain_fairchem_forces, vjp_error

MAX_ATOMS = small.RESMLP["backbone"]["max_atoms"]


def test_equation_10():
    """Written out for one structure; W_6 is the last layer times the force head."""
    model, (atoms, *_) = small.model("resmlp"), small.silicon(1)
    data = small.batch([atoms])
    n, backbone = len(atoms), model.backbone
    x = torch.zeros(MAX_ATOMS, backbone.features, dtype=torch.float64)
    x[:n] = torch.cat([data.pos, backbone.descriptors[data.atomic_numbers]], dim=1)
    h = x.flatten()
    for step in backbone.layers:
        t = functional.gelu(step.inner.weight @ h + step.inner.bias)
        h = functional.layer_norm(
            step.mix.weight @ t + t, t.shape, step.norm.weight, step.norm.bias, step.norm.eps
        )
    w6 = torch.block_diag(*[model.output_heads["forces"].projection.weight] * MAX_ATOMS)
    expected = (w6 @ backbone.out.weight @ h).view(MAX_ATOMS, 3)[:n]
    torch.testing.assert_close(forces(model, data), expected, rtol=1e-11, atol=1e-12)


def test_defaults_are_the_papers():
    """Six layers of 4096 nodes and 220 x 3 outputs; read off, as building it takes a gigabyte."""
    default = {k: p.default for k, p in inspect.signature(ResMLPBackbone).parameters.items()}
    assert [default[k] for k in ("max_atoms", "hidden", "layers")] == [220, 4096, 6]


def test_vjps_against_central_differences():
    positions, parameters = vjp_error("resmlp", small.silicon(3))
    assert positions < 1e-6 and parameters < 1e-6


def test_a_structure_may_fill_the_model_but_not_exceed_it():
    model = small.model("resmlp")
    atoms = small.silicon(1)[0] * (1, 1, 2)
    assert forces(model, small.batch([atoms[:MAX_ATOMS]])).shape == (MAX_ATOMS, 3)
    with pytest.raises(ValueError, match=f"has {MAX_ATOMS + 1} atoms.*max_atoms={MAX_ATOMS}"):
        forces(model, small.batch([atoms[: MAX_ATOMS + 1]]))


def test_plain_fairchem_gives_the_models_forces(tmp_path):
    small.checkpoint(tmp_path / "resmlp.pt", "resmlp")
    structures = small.silicon(3)
    theirs = plain_fairchem_forces(tmp_path / "resmlp.pt", structures, tmp_path)
    model = small.model("resmlp", double=False)
    ours = torch.cat([forces(model, small.batch([a], double=False)) for a in structures])
    np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-6, rtol=0)
    assert np.abs(theirs).max() > 1e-3
