"""ADAPT against its equations, finite differences and plain fairchem.

What holds for both coordinate models in a line or two is in ``test_coordinate_models``.
"""

import math
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from fairchem.core.units.mlip_unit.utils import load_inference_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fairchem_gdeq.models import coordinates
from fairchem_gdeq.testing.fairchem2 import small


def forces(model, data):
    """Raw forces [n, 3] of a model for an AtomicData batch."""
    return model(data)["forces"]["forces"]


def at(data, positions):
    """The batch at other positions [n, 3]."""
    out = data.clone()
    out.pos = positions
    return out


def vjp_error(kind, structures):
    """Relative error of the VJPs to positions and parameters against central differences."""
    model, data = small.model(kind), small.batch(structures)
    generator = torch.Generator().manual_seed(0)
    x = data.pos.clone().requires_grad_(True)
    lam = torch.randn(x.shape, generator=generator).double()
    parameters = list(model.parameters())
    analytic = torch.autograd.grad((lam * forces(model, at(data, x))).sum(), [x, *parameters])
    h = 1e-5

    @torch.no_grad()
    def value(positions):
        return (lam * forces(model, at(data, positions))).sum()

    numeric = torch.zeros_like(data.pos)
    for i in range(data.pos.numel()):
        e = torch.zeros(data.pos.numel(), dtype=torch.float64)
        e[i] = h
        e = e.view_as(data.pos)
        numeric.view(-1)[i] = (value(data.pos + e) - value(data.pos - e)) / (2 * h)

    # One random direction through all parameters at once.
    way = [torch.randn(p.shape, generator=generator).double() for p in parameters]
    sides = []
    for sign in (1, -2, 1):  # to +h, to -h, and back
        with torch.no_grad():
            for p, d in zip(parameters, way, strict=True):
                p.add_(d, alpha=sign * h)
        sides.append(value(data.pos))
    along = (sides[0] - sides[1]) / (2 * h)
    expected = sum((g * d).sum() for g, d in zip(analytic[1:], way, strict=True))
    return (
        float((analytic[0] - numeric).norm() / numeric.norm()),
        float((expected - along).abs() / along.abs()),
    )


def plain_fairchem_forces(checkpoint, structures, folder, preset="batch"):
    """Forces of each structure by FAIRChemCalculator in a process that imports nothing of ours."""
    ase.io.write(folder / "structures.traj", structures)
    script = f"""
import ase.io, numpy as np
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
unit = load_predict_unit({str(checkpoint)!r}, device="cpu", inference_settings={preset!r})
calculator = FAIRChemCalculator(unit)
out = []
for atoms in ase.io.read({str(folder / "structures.traj")!r}, ":"):
    atoms.calc = calculator
    out.append(atoms.get_forces())
assert calculator.implemented_properties == ["forces"]
np.save({str(folder / "forces.npy")!r}, np.concatenate(out))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "forces.npy")


def test_equations_6_to_9():
    """Written out for one structure: no padding, no mask, no fused attention."""
    model, (atoms, *_) = small.model("adapt"), small.silicon(1)
    data = small.batch([atoms])
    backbone = model.backbone

    def layer(module, x):
        return x @ module.weight.T + (0 if module.bias is None else module.bias)

    def norm(module, x):
        return functional.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)

    config = small.ADAPT["backbone"]
    waves = 2 * math.pi / torch.tensor(config["wavelengths"], dtype=torch.float32).double()
    phase = torch.cat([data.pos[:, [k]] * waves for k in range(3)], dim=1)
    x = torch.cat(
        [
            (data.pos - config["origin"]) / config["scale"],
            backbone.descriptors[data.atomic_numbers],
            phase.sin(),
            phase.cos(),
        ],
        dim=1,
    )
    w0, _, w1, _, w2 = backbone.embedding
    x = layer(w2, functional.gelu(layer(w1, functional.gelu(layer(w0, x)))))  # eq. 8
    for block in backbone.blocks:  # eq. 6
        q, k, v = layer(block.query_key_value, x).chunk(3, dim=-1)
        size = q.shape[-1] // block.heads
        mixed = []
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            weights = (q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(-1)
            mixed.append(weights @ v[:, part])
        h1 = norm(block.norm_attention, x + layer(block.out, torch.cat(mixed, dim=-1)))
        into, _, outof = block.ffn
        h2 = layer(outof, functional.gelu(layer(into, norm(block.norm_in, h1))))
        x = norm(block.norm_out, h2 + h1)
    expected = x @ model.output_heads["forces"].projection.weight.T  # eq. 7
    # The model's wave numbers were rounded to single precision before they became double.
    torch.testing.assert_close(forces(model, data), expected, rtol=1e-5, atol=1e-6)
    backbone.wave_numbers.copy_(waves)
    torch.testing.assert_close(forces(model, data), expected, rtol=1e-11, atol=1e-12)


def test_vjps_against_central_differences():
    positions, parameters = vjp_error("adapt", small.silicon(3))
    assert positions < 1e-6 and parameters < 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_permutation_equivariance_inside_a_batch(seed, count):
    """Every structure is permuted on its own, next to smaller ones that are padded."""
    model, structures = small.model("adapt"), small.silicon(count, seed=seed)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(a)) for a in structures]
    permuted = small.batch([a[o] for a, o in zip(structures, orders, strict=True)])
    starts = np.cumsum([0, *(len(a) for a in structures[:-1])])
    order = np.concatenate([s + o for s, o in zip(starts, orders, strict=True)])
    expected = forces(model, small.batch(structures))[torch.from_numpy(order)]
    torch.testing.assert_close(forces(model, permuted), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 8), min_size=2, max_size=5), double=st.booleans())
def test_batch_equals_one_at_a_time_for_any_sizes(kind, sizes, double):
    model = small.model(kind, double=double)
    structures = [a[:n] for a, n in zip(small.silicon(len(sizes)), sizes, strict=True)]
    together = forces(model, small.batch(structures, double))
    apart = torch.cat([forces(model, small.batch([a], double)) for a in structures])
    tolerance = 1e-12 if double else 1e-6
    torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_a_broken_structure_stays_alone(kind):
    data = small.batch(small.silicon(3))
    sound = data.batch != 1
    model = small.model(kind)
    before = forces(model, data)
    data.pos[~sound] = torch.nan
    after = forces(model, data)
    torch.testing.assert_close(after[sound], before[sound], rtol=1e-12, atol=1e-12)
    assert after[~sound].isnan().all()


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_structures_do_not_see_each_other(kind):
    data = small.batch(small.silicon(3))
    data.pos.requires_grad_(True)
    out = forces(small.model(kind), data)
    (g,) = torch.autograd.grad(out[data.batch == 1].square().sum(), data.pos)
    assert (g[data.batch != 1] == 0).all() and (g[data.batch == 1] != 0).all()


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_the_cell_is_not_read(kind):
    model, data = small.model(kind), small.batch(small.silicon(2))
    before = forces(model, data)
    data.cell = 7 * data.cell
    data.pbc = ~data.pbc
    assert torch.equal(forces(model, data), before)


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_repeated_vjps_of_one_forward_agree(kind):
    model, data = small.model(kind), small.batch(small.silicon(2))
    data.pos.requires_grad_(True)
    out = forces(model, data)
    lam = torch.ones_like(out)
    first, second = (
        torch.autograd.grad(out, data.pos, lam, retain_graph=True)[0] for _ in range(2)
    )
    out.backward(lam)
    assert torch.equal(first, second) and torch.equal(first, data.pos.grad)
    assert not any(isinstance(m, torch.nn.Dropout) for m in model.modules())


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_checkpoint_brings_its_own_descriptors(kind, tmp_path, monkeypatch):
    """A later library with other tables must not change the forces of a model already trained."""
    small.checkpoint(tmp_path / "model.pt", kind)
    data = small.batch(small.silicon(2), double=False)
    expected = forces(small.model(kind, double=False), data)
    other = 3 * torch.ones_like(coordinates.descriptor_table())
    monkeypatch.setattr(coordinates, "descriptor_table", lambda: other)
    assert (forces(small.model(kind, double=False), data) - expected).abs().max() > 1e-3
    loaded = load_inference_model(str(tmp_path / "model.pt"), use_ema=True, return_checkpoint=False)
    torch.testing.assert_close(forces(loaded.eval(), data), expected, rtol=0, atol=0)


# "default" merges and compiles where a model can, and falls back when the composition changes.
@pytest.mark.parametrize("preset", ["batch", pytest.param("default", marks=pytest.mark.slow)])
def test_plain_fairchem_gives_the_models_forces(tmp_path, preset):
    small.checkpoint(tmp_path / "adapt.pt", "adapt")
    structures = small.silicon(3)
    theirs = plain_fairchem_forces(tmp_path / "adapt.pt", structures, tmp_path, preset)
    model = small.model("adapt", double=False)
    ours = torch.cat([forces(model, small.batch([a], double=False)) for a in structures])
    np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-6, rtol=0)
    assert np.abs(theirs).max() > 1e-3
