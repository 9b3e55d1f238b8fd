"""Every family of fairchem 2: the model's own forces, their exact derivative, training."""

import copy

import pytest
import torch
from fairchem.core.models.base import HydraModel
from torch import nn

from fairchem_gdeq.fairchem2.families import graphs_of
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.supported import require_exact
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.frozen.patching import swapped
from fairchem_gdeq.testing.fairchem2 import backbone_checks, backbones, small

ALL = pytest.mark.parametrize("name", backbones.BACKBONES)
ESEN, MOE, ESCAIP, ALLSCAIP = (
    "eSEN direct (OC25)",
    "UMA, mixture of experts",
    "EScAIP, soft kNN",
    "AllScAIP, low-memory soft kNN",
)


@ALL
def test_forces_at_the_start_are_the_unmodified_models(name):
    """Double precision is the sharp check; single is the code as it runs, which rounds per processor."""
    assert backbone_checks.force_differences(name, double=True)[0] < 1e-12
    assert backbone_checks.force_differences(name)[0] < 1e-4


@ALL
def test_vjp_against_central_differences(name):
    assert backbone_checks.derivative_error(name) < 1e-6


@ALL
def test_the_table_has_words_for_what_is_frozen(name):
    without = name in ("ADAPT", "ResMLP")
    assert backbone_checks.frozen(name).startswith("nothing" if without else "pairs, images")


@ALL
def test_vjp_as_trained_in_single_precision(name):
    """The check above widens constants in fairchem's code; this is the code as it runs."""
    data = small.batch(backbones.structures(name), double=False)
    single = backbones.model(name, False, data)
    double = copy.deepcopy(single).double()
    lam = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0))
    task = IS2RS(alpha=1.0, cap=None)
    got = task.operator(single, backbones.tasks(name), data).vjp(data.pos, lam)
    with backbone_checks.double_precision():
        wide = small.batch(backbones.structures(name))
        operator = task.operator(double, backbones.tasks(name), wide)
        want = operator.vjp(wide.pos, lam.double())
    assert (got - want).norm() / (want - lam).norm() < 1e-3


@ALL
def test_two_training_steps_lower_the_loss(name):
    before, after = backbone_checks.two_steps(name)
    assert after < before


@ALL
def test_selected_structures_have_the_same_forces(name):
    data = small.batch(backbones.structures(name, 4), double=False)
    built = backbones.model(name, False, data)
    field = HydraForceField.frozen(built, backbones.tasks(name), data)
    keep = torch.tensor([False, True, False, True])
    atoms = keep[data.batch]
    moved = data.pos + 0.02 * torch.randn(data.pos.shape, generator=torch.manual_seed(0))
    torch.testing.assert_close(
        field.select(keep)(moved[atoms]), field(moved)[atoms], rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("name", [ESEN, MOE, ESCAIP, ALLSCAIP])
def test_whole_cells_and_rigid_shifts_change_nothing(name):
    with backbone_checks.double_precision():
        data = small.batch(backbones.structures(name))
        field = HydraForceField.frozen(backbones.model(name, True), backbones.tasks(name), data)
        cells = torch.randint(-2, 3, data.pos.shape, generator=torch.Generator().manual_seed(0))
        outside = data.pos + cells * 5.463
        fresh = field.freeze(outside)
        torch.testing.assert_close(fresh(outside), field(data.pos), rtol=0, atol=1e-8)
        assert fresh.edges_changed(outside).sum() == 0
        torch.testing.assert_close(field(data.pos + 1.7), field(data.pos), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [ESCAIP, "EScAIP, hard kNN", ALLSCAIP])
def test_pairs_enter_and_leave_only_when_frozen_anew(name):
    data = small.batch(small.silicon(2), double=False)
    built, tasks = backbones.model(name, False), backbones.tasks(name)
    field = HydraForceField.frozen(built, tasks, data)
    moved = data.pos.clone()
    moved[0] += 0.9
    changed = field.edges_changed(moved)
    assert changed[0] > 0 and changed[1] == 0
    live = HydraForceField.frozen(built, tasks, data).unfreeze()
    again = data.clone()
    again.pos = moved
    plain = backbone_checks.unmodified_forces(built, tasks[0], again)
    torch.testing.assert_close(live(moved).detach(), plain, rtol=1e-4, atol=1e-5)
    assert (field(moved) - plain).abs().max() > 1e-4
    assert field.skin().isnan().all()


# ---- randomness in training --------------------------------------------------------------------

NOISY = {
    ESCAIP: dict.fromkeys(
        [
            *("mlp_dropout", "atten_dropout", "stochastic_depth_prob", "node_ffn_dropout"),
            *("edge_ffn_dropout", "scalar_output_dropout", "vector_output_dropout"),
        ],
        0.5,
    ),
    ALLSCAIP: {"mlp_dropout": 0.5, "atten_dropout": 0.5},
    MOE: {"moe_dropout": 0.5, "composition_dropout": 0.5},
}


@pytest.mark.parametrize("name", NOISY)
def test_careless_training_mode_is_one_map(name):
    config = copy.deepcopy(backbones.BACKBONES[name].config)
    config["backbone"] |= NOISY[name]
    torch.manual_seed(0)
    model = HydraModel(**config).float()
    data = small.batch(small.silicon(2), double=False)
    task = backbones.tasks(name)
    model.eval()
    quiet = backbone_checks.unmodified_forces(model, task[0], data)
    model.train()
    noisy = [backbone_checks.unmodified_forces(model, task[0], data) for _ in range(2)]
    assert not torch.allclose(*noisy, rtol=1e-3), "the configuration is not random after all"

    operator = IS2RS(remove_drift=False).operator(model, task, data)
    first = operator.forces(data.pos)
    torch.testing.assert_close(first.detach(), quiet, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(first, operator.forces(data.pos)) for _ in range(3))
    lam = torch.ones_like(data.pos)
    assert torch.equal(operator.vjp(data.pos, lam), operator.vjp(data.pos, lam))
    assert all(module.training for module in model.modules()), "the caller's mode was changed"


# ---- what is refused ---------------------------------------------------------------------------


def refused(name, match, heads=None, **changes):
    config = copy.deepcopy(backbones.BACKBONES[name].config)
    config["backbone"] |= changes
    config["heads"] = heads or config["heads"]
    with pytest.raises(ValueError, match=match):
        require_exact(HydraModel(**config))


def test_settings_that_are_not_exact():
    refused(ESEN, "use_quaternion_wigner: true", use_quaternion_wigner=False)
    refused(ESEN, "execution_mode: general", execution_mode="umas_fast_pytorch")
    refused(ESCAIP, "random linear layer", distance_function="silu")
    refused(ESCAIP, "use_fp16_backbone: false", use_fp16_backbone=True)
    refused(ALLSCAIP, "use_chunked_graph: false", use_chunked_graph=True)
    refused(ALLSCAIP, "feel each other", single_system_no_padding=True)


def test_euler_angles_are_wrong_on_the_y_axis_and_the_override_changes_no_forces(monkeypatch):
    """Why use_quaternion_wigner: false is refused, and why overriding it is safe."""
    from ase import Atoms

    monkeypatch.setattr("fairchem_gdeq.fairchem2.supported._edge_list_reasons", lambda b: [])
    # With Euler angles the model has no use for what takes the place of the other ones.
    unchecked = lambda owner, name, value, otherwise: swapped(owner, name, value)  # noqa: E731
    monkeypatch.setattr("fairchem_gdeq.fairchem2.graphs.replaced", unchecked)
    config = backbones.BACKBONES[ESEN].config
    pair = [Atoms("Si2", positions=[[1, 1, 1], [1, 3, 1]], cell=[12] * 3, pbc=True)]
    data = small.batch(small.silicon(2), double=False)
    forces, errors = [], []
    for quaternion in (True, False):
        monkeypatch.setitem(config["backbone"], "use_quaternion_wigner", quaternion)
        model = backbones.model(ESEN, False)
        forces.append(backbone_checks.unmodified_forces(model, backbones.tasks(ESEN)[0], data))
        errors.append(backbone_checks.derivative_error(ESEN, pair))
    assert errors[0] < 1e-6 and errors[1] > 1e-2
    torch.testing.assert_close(*forces, rtol=1e-4, atol=1e-5)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="neighbour_free = True"):
        graphs_of(nn.Linear(1, 1))


def test_table_too_narrow_is_named():
    name = ESCAIP
    model = backbones.model(name, False)
    model.backbone.data_preprocess.keywords["molecular_graph_cfg"].knn_pad_size = 5
    data = small.batch(small.silicon(1), double=False)
    with pytest.raises(ValueError, match=r"knn_pad_size: \d+ or more"):
        HydraForceField.frozen(model, backbones.tasks(name), data)


def test_data_set_of_another_head():
    """UMA's heads would return zero forces for it without a word."""
    data = small.batch(small.silicon(2), double=False)
    data.dataset = ["si", "oc20"]
    with pytest.raises(ValueError, match=r"'oc20', 'si'.* is for \['si'\]"):
        HydraForceField.frozen(backbones.model(MOE, False), backbones.tasks(MOE), data)
    del data["dataset"]
    with pytest.raises(ValueError, match="no named data set"):
        HydraForceField.frozen(backbones.model(MOE, False), backbones.tasks(MOE), data)
    data.dataset_name = ["si.train", "si.val"]  # as fairchem's concatenated data sets have it
    field = HydraForceField.frozen(backbones.model(MOE, False), backbones.tasks(MOE), data)
    assert field.batch.dataset == ["si", "si"] and field(data.pos).abs().max() > 1e-3


def test_merged_mixture_is_for_one_composition():
    name = "UMA, merged"
    data = small.batch(backbones.structures(name), double=False)
    model = backbones.model(name, False, data)
    other = small.batch(small.silicon(1, seed=5)[:1] + small.silicon(2)[1:], double=False)
    with pytest.raises(ValueError, match="composition"):
        HydraForceField.frozen(model, backbones.tasks(name), other)
