"""Models whose forces are the gradient of their energy; ``test_backbones`` has their derivatives."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from fairchem.core import FAIRChemCalculator
from fairchem.core.models.base import HydraModel
from fairchem.core.models.uma.escn_md import MLP_EFS_Head
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss
from fairchem.core.units.mlip_unit import load_predict_unit

import fairchem_gdeq as gdeq
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.replay import BaseBatches, forces_loss
from fairchem_gdeq.fairchem2.supported import require_exact
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import GMRES
from fairchem_gdeq.testing.fairchem2 import backbones, small
from fairchem_gdeq.testing.precision import double_precision

NAMES = [name for name in backbones.BACKBONES if "conserving" in name]
ESEN = "eSEN, conserving"


def field_of(name, double=False, count=2):
    data = small.batch(backbones.structures(name, count), double)
    model = backbones.model(name, double, data)
    return HydraForceField.frozen(model, backbones.tasks(name), data), data


@pytest.mark.parametrize("name", NAMES)
def test_only_a_gradient_pays_for_second_derivatives(name):
    field, data = field_of(name)
    with torch.no_grad():
        assert field(data.pos).grad_fn is None
    assert not data.pos.requires_grad and not field.batch.cell.requires_grad
    x = data.pos.clone().requires_grad_(True)
    assert field(x).grad_fn is not None
    assert not any(module.training for module in field.model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_its_jacobian_is_symmetric(name):
    with double_precision():
        field, data = field_of(name, double=True, count=1)
        jacobian = torch.autograd.functional.jacobian(field, data.pos).reshape(data.pos.numel(), -1)
    assert (jacobian - jacobian.mT).norm() < 1e-8 * jacobian.norm()


def test_energies_are_those_whose_gradient_the_forces_are():
    """By central differences, a structure at a time."""
    with double_precision():
        data = small.batch(backbones.structures(ESEN), double=True)
        (forces,) = backbones.tasks(ESEN)
        energy = replace(forces, property="energy", level="system")
        potential = gdeq.load_potential(backbones.model(ESEN, double=True), tasks=[forces, energy])
        field, step = potential.field(data), 1e-4
        slopes = []
        for atom in (0, len(data.pos) - 1):
            move = torch.zeros_like(data.pos)
            move[atom, 1] = step
            with torch.no_grad():
                up, down = (field.energies(data.pos + s * move, energy) for s in (1, -1))
                slopes.append((down - up) / (2 * step))
            along = field(data.pos)[atom, 1].detach()
            expected = torch.stack([along * (data.batch[atom] == i) for i in range(2)])
            torch.testing.assert_close(slopes[-1], expected, rtol=1e-5, atol=1e-7)
        structures = backbones.structures(ESEN)
        alone = [potential.energies(atoms)[0] for atoms in structures]
        assert potential.energies(structures) == pytest.approx(alone, rel=1e-9)
        assert replace(potential, tasks=[forces]).energies(structures) is None


@pytest.mark.parametrize("name", NAMES)
def test_frames_train_all_that_forces_depend_on(name):
    """fairchem's loss of forces, in evaluation mode, against central differences."""
    with double_precision():
        data = small.batch(backbones.structures(name))
        model = backbones.model(name, True, data)
        (task,) = backbones.tasks(name)
        task.loss_fn = DDPMTLoss(L2NormLoss(), reduction="mean")
        data[task.name] = torch.randn(data.pos.shape, generator=torch.manual_seed(0))
        data.dataset_name = ["si"] * len(data.natoms)
        forces_loss(model, task, data.clone()).backward()
        moved = {n: p for n, p in model.named_parameters() if p.grad is not None}
        assert any(n.startswith("backbone") for n in moved)
        assert any(n.startswith("output_heads") for n in moved)
        way = {n: torch.randn(p.shape, generator=torch.manual_seed(1)) for n, p in moved.items()}
        slope = sum(float((p.grad * way[n]).sum()) for n, p in moved.items())
        ends = []
        for step in (1e-5, -2e-5):
            for n, p in moved.items():
                p.data += step * way[n]
            ends.append(float(forces_loss(model, task, data.clone()).detach()))
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_its_own_forces_as_labels(name):
    """``forces.src=base``: labels of the base on the way, which the same weights fit exactly."""
    data = small.batch(backbones.structures(name), double=False)
    model = backbones.model(name, False, data)
    task = replace(backbones.tasks(name)[0], loss_fn=DDPMTLoss(L2NormLoss(), reduction="mean"))
    report = SimpleNamespace(handoff=data.pos + 0.01, diverged=torch.zeros(2, dtype=torch.bool))
    frames = BaseBatches(model, task, 0)(3, data, report)
    assert frames[task.name].grad_fn is None and not frames.pos.requires_grad
    loss = forces_loss(model, task, frames)
    loss.backward()
    assert float(loss.detach()) < 1e-4
    assert any(p.grad is not None for p in model.parameters())


def test_minres_takes_no_fewer_products_than_gmres():
    """I - J_G is symmetric, and both find the shortest residual of the same space."""
    with double_precision():
        field, data = field_of(ESEN, double=True, count=1)
        operator = IS2RS(alpha=0.05, cap=None).operator(field.model, backbones.tasks(ESEN), data)
        g = torch.randn(data.pos.shape, generator=torch.manual_seed(0))
        tols = (0.8, 0.4, 0.1)
        ours = [GMRES(tol=tol, damping=0.0)(operator, data.pos, g) for tol in tols]

        def product(v):
            lam = operator.project(torch.as_tensor(v).view(-1, 3), data.pos)
            out = lam - operator.project(operator.vjp(data.pos, lam), data.pos)
            return out.flatten().numpy()

        size = data.pos.numel()
        matrix = scipy.sparse.linalg.LinearOperator((size, size), matvec=product)
        wanted = operator.project(g, data.pos).flatten().numpy()
        residuals = []
        scipy.sparse.linalg.minres(
            *(matrix, wanted),
            rtol=1e-12,
            maxiter=50,
            callback=lambda u: residuals.append(np.linalg.norm(wanted - product(u))),
        )
    relative = np.array(residuals) / np.linalg.norm(wanted)
    for tol, answer in zip(tols, ours, strict=True):
        assert answer.converged.all()
        assert int(answer.vjps) <= 2 + int(np.argmax(relative < tol))


# ---- tuning ------------------------------------------------------------------------------------

CONFIG = backbones.BACKBONES[ESEN].config | {
    "heads": {"efs": {"module": "fairchem.core.models.uma.escn_md.MLP_EFS_Head"}},
    "pass_through_head_outputs": True,
}
TASKS = [small.task_config("energy", "energy"), small.task_config("forces")]


def test_after_tuning_forces_are_the_gradient_of_the_energy(tmp_path):
    small.write_checkpoint(tmp_path / "base.pt", CONFIG, TASKS)
    base = gdeq.load_potential(tmp_path / "base.pt", device="cpu")
    starts, targets = small.silicon(4, 1), small.silicon(4, 1)
    for atoms in targets:
        atoms.positions += 0.05
    signal = gdeq.GDEQ(horizon=3, fmax=0.5, max_steps=25)
    run = gdeq.finetune(
        *(base, starts, targets),
        **{"epochs": 2, "lr": 1e-3, "signal": signal, "forces": "base", "progress": False},
    )
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(
            base.model.named_parameters(), run.best.model.parameters(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert changed == {"backbone", "output_heads"}
    run.best.save(tmp_path / "tuned.pt")

    unit = load_predict_unit(tmp_path / "tuned.pt", "batch", device="cpu")  # not compiled
    atoms = small.silicon(1, 5)[0]
    atoms.calc = FAIRChemCalculator(unit, task_name="si")
    forces, step, slopes = atoms.get_forces(), 5e-3, np.zeros((3, 3))
    for i, k in np.ndindex(3, 3):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, k] += sign * step
            moved.calc = atoms.calc
            ends.append(moved.get_potential_energy())
        slopes[i, k] = (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(forces[:3], slopes, atol=1e-2 * np.abs(forces).max())


# ---- what is refused ---------------------------------------------------------------------------


class OnceDifferentiable(MLP_EFS_Head):
    """A head that never keeps the graph of its forces."""

    def forward(self, data, emb):
        found = super().forward(data, emb)
        return {name: each.detach() for name, each in found.items()}


def test_a_head_without_second_derivatives_is_named(monkeypatch):
    field, data = field_of(ESEN)
    field.model.output_heads["forces"].__class__ = OnceDifferentiable
    with torch.no_grad():
        field(data.pos)
    with pytest.raises(ValueError, match=r"\(OnceDifferentiable\) keep no graph.*create_graph"):
        field(data.pos)


def test_settings_without_second_derivatives_are_named():
    config = copy.deepcopy(backbones.BACKBONES["EScAIP, conserving"].config)
    config["backbone"]["atten_name"] = "memory_efficient"
    model = HydraModel(**config)
    model.backbone.gnn_cfg.atten_name = "memory_efficient"  # fairchem takes it back without a GPU
    with pytest.raises(ValueError, match=r"memory_efficient has no second.*atten_name: math"):
        require_exact(model)
    with pytest.raises(ValueError, match=r"compile: true: eSCNMDBackbone.*compile: false"):
        compile_backbone(backbones.model(ESEN, False))
