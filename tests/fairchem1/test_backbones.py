"""Every family of fairchem 1: the model's own forces, their exact derivative, training."""

import copy
import pickle

import pytest
import torch
from fairchem.core.models.base import HydraModel

from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.relax import GMRES, make_signal
from fairchem_gdeq.relax.guidance import guidance_by_stored_graph, guidance_by_sweep
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones
from fairchem_gdeq.testing.precision import double_precision

ALL = pytest.mark.parametrize("name", backbones.BACKBONES)
FAMILIES = pytest.mark.parametrize(
    "name",
    [
        *("EquiformerV2", "eSCN", "eSEN", "SCN", "GemNet-OC", "GemNet-dT", "PaiNN"),
        *("eSEN, conserving", "SchNet"),
    ],
)
FRAMED = pytest.mark.parametrize("name", ["EquiformerV2", "eSCN", "eSEN", "SCN"])


@ALL
def test_forces_are_the_unmodified_models(name):
    """At X_0 and 0.15 Angstrom away, on the same edges."""
    start, moved, _ = backbone_checks.force_differences(name, double=True)
    assert start < 1e-5 and moved < 1e-5


@FAMILIES
def test_forces_are_the_unmodified_models_in_single_precision(name):
    start, moved, _ = backbone_checks.force_differences(name)
    assert start < 1e-5 and moved < 1e-5


@ALL
def test_vjp_against_central_differences(name):
    assert backbone_checks.derivative_errors(name)[0] < 1e-6


@FRAMED
def test_shipped_vjp_is_wrong(name):
    """Why frames are frozen: autograd through fairchem's own detached frames is not the derivative."""
    assert backbone_checks.derivative_errors(name)[1] > 1e-3


@FAMILIES
def test_vjp_in_single_precision(name):
    """The check above widens constants in fairchem's code; this is the code as it runs."""
    data = backbones.batch(backbones.slabs())
    single = backbone_checks.field_of(name, data)
    lam = torch.randn(data.pos.shape, generator=torch.manual_seed(0))
    got = backbone_checks.operator_of(single).vjp(data.pos, lam) - lam
    with double_precision():
        wide = backbones.batch(backbones.slabs(), double=True)
        field = backbone_checks.field_of(name, wide, double=True)
        field.model.load_state_dict(single.model.state_dict())
        want = backbone_checks.operator_of(field).vjp(wide.pos, lam.double()) - lam
    assert (got - want).norm() / want.norm() < 1e-3


@FAMILIES
def test_sweep_equals_stored_graph(name):
    """Also of the parameters: nothing is lost between one evaluation and the next."""
    with double_precision():
        data = backbones.batch(backbones.slabs(), double=True)
        field = backbone_checks.field_of(name, data, double=True)
        operator = backbone_checks.operator_of(field, alpha=0.01)
        target = data.pos + 0.05 * torch.randn(data.pos.shape, generator=torch.manual_seed(1))
        results = []
        for guide in (guidance_by_sweep, guidance_by_stored_graph):
            field.model.zero_grad()
            guide(operator, data.pos, 3, lambda x: ((x - target) ** 2).sum(), 1.0)
            grads = [p.grad.flatten() for p in field.model.parameters() if p.grad is not None]
            results.append(torch.cat(grads))
    assert results[1].norm() > 0
    assert (results[0] - results[1]).norm() / results[1].norm() < 1e-10


@pytest.mark.parametrize("name", ["EquiformerV2", "GemNet-OC"])
def test_two_steps_of_algorithm_1(name, monkeypatch):
    """Window, solve with live graphs and compaction, adjoint: the loss falls, nothing stays behind."""
    # With random weights, atoms may fall together.
    monkeypatch.setattr("fairchem_gdeq.relax.causes.SHORTEST", 0.0)
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of(name, data)
    operator = backbone_checks.operator_of(field, alpha=0.01)
    target = data.pos + 0.05 * torch.randn(data.pos.shape, generator=torch.manual_seed(1))
    method = {"horizon": 3, "max_steps": 8, "fmax": 0.05, "adjoint": GMRES(max_vjps=5)}
    optimizer = torch.optim.Adam(field.model.parameters(), lr=3e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        report = make_signal("gdeq", **method)(operator, data.pos, target)
        losses.append(report.loss)
        grads = [p.grad for p in field.model.parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(g).all() for g in grads)
        optimizer.step()
    assert losses[-1] < losses[0] and not report.diverged.any()
    copy.deepcopy(field.model)


def rotation() -> torch.Tensor:
    """Some rotation [3, 3]."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.manual_seed(3), dtype=torch.float64))
    return q * torch.linalg.det(q)


@FAMILIES
def test_rotation_equivariance(name):
    """As far as the model itself has it: EquiformerV2 and eSCN only to their grids' resolution."""
    with double_precision():
        data = backbones.batch(backbones.slabs(), double=True)
        field = backbone_checks.field_of(name, data, double=True)
        turn = rotation()
        turned = data.clone()
        turned.pos, turned.cell = data.pos @ turn.T, data.cell @ turn.T
        other = OCPForceField.frozen(field.model, turned, backbone_checks.denorm)
        assert other.graph.neighbors.tolist() == field.graph.neighbors.tolist()
        moved = backbone_checks.nudged(data, 0.1, field)
        found, want = other(moved @ turn.T), field(moved) @ turn.T
        own = backbone_checks.unmodified(field.model, turned, moved @ turn.T)
        loss = backbone_checks.relative(
            own, backbone_checks.unmodified(field.model, data, moved) @ turn.T
        )
    assert backbone_checks.relative(found, want) < max(1e-6, 3 * loss)


# ---- one map, and no trace of it -----------------------------------------------------------------


@FAMILIES
def test_every_evaluation_is_the_same_map_whatever_mode_the_model_is_in(name):
    """Frames, dropout and stochastic depth are random in training; bit-equal forces show no trace."""
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of(name, data)
    first = field(data.pos).detach()
    field.model.train()
    before = torch.random.get_rng_state()
    assert all(torch.equal(first, field(data.pos).detach()) for _ in range(2))
    assert torch.equal(first, field.freeze(data.pos)(data.pos).detach())
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's randomness was touched"
    assert all(module.training for module in field.model.modules()), "the mode was changed"


def state(model: torch.nn.Module) -> list:
    """Whatever the instance holds beside its class, hooks and submodules included."""
    return [
        {
            key: list(value) if isinstance(value, dict) else id(value)
            for key, value in vars(m).items()
        }
        for m in model.modules()
    ]


@ALL
def test_nothing_stays_on_the_instance(name):
    data = backbones.batch(backbones.slabs())
    model = backbones.model(name)
    with torch.no_grad():
        model(data.clone())  # fairchem's own caches fill in the first call
    before = state(model)
    field = OCPForceField.frozen(model, data, backbone_checks.denorm)
    field(data.pos).sum().backward()
    with pytest.raises((RuntimeError, IndexError)):  # it fails inside
        field(data.pos[:-1])
    after = state(model)
    counters = {"counter", "batch_size", "dtype", "device"}
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(old[key] == new[key] for key in old if key not in counters)
    copy.deepcopy(model)
    pickle.dumps(model.state_dict())


@FAMILIES
def test_no_graph_is_recorded_under_no_grad(name):
    """A rollout at constant memory depends on it; fairchem forces gradients on in EquiformerV2."""
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of(name, data)
    with torch.no_grad():
        assert not field(data.pos).requires_grad
    assert field(data.pos).requires_grad


def test_hydra_heads_with_their_own_dictionaries():
    """``pass_through_head_outputs: false``, and a model in DDP-like wrappers."""
    config = backbones.BACKBONES["PaiNN, heads"] | {"pass_through_head_outputs": False}
    torch.manual_seed(0)
    model = backbones.build(config).float()
    assert isinstance(model, HydraModel)
    data = backbones.batch(backbones.slabs())
    wrapped = torch.nn.Sequential()
    wrapped.module = model
    field = OCPForceField.frozen(wrapped, data, backbone_checks.denorm)
    assert field.model is model and field(data.pos).shape == data.pos.shape
