"""Slabs, molecules, single atoms and structures without neighbours, in every family with neighbours."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, hcp0001, molecule
from ase.constraints import FixAtoms
from fairchem.core.models.base import HydraModel
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.task import IS2RS, Relaxer
from fairchem_gdeq.relax import GMRES, make_signal
from fairchem_gdeq.testing.fairchem2 import backbone_checks, backbones, small

FAMILIES = [
    "eSEN direct (OC25)",
    "UMA, mixture of experts",
    "EScAIP, soft kNN",
    "AllScAIP, low-memory soft kNN",
]
ESEN, _, ESCAIP, ALLSCAIP = FAMILIES
every = pytest.mark.parametrize("name", FAMILIES)


def slab(pbc=(True, True, False), lower: float = 0.0) -> Atoms:
    """Oxygen on three layers of titanium, the lowest fixed, in vacuum; moved down by ``lower``."""
    atoms = hcp0001("Ti", (1, 1, 3), vacuum=5.0)
    add_adsorbate(atoms, "O", 1.3, "ontop")
    atoms.pbc = pbc
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    atoms.positions[:, 2] -= lower
    atoms.set_constraint(FixAtoms([0]))
    return atoms


def boxed(atoms: Atoms, side: float = 12.0) -> Atoms:
    """In a periodic box with vacuum."""
    out = atoms.copy()
    out.set_cell([side] * 3)
    out.center()
    out.pbc = True
    return out


def pair(distance: float) -> Atoms:
    """Two atoms; far apart they have no neighbours."""
    return Atoms("O2", positions=[[0, 0, 0], [distance, 0, 0]])


def without_pbc(name: str) -> HydraModel:
    """The family's model, set up for structures that are not periodic."""
    config = copy.deepcopy(backbones.BACKBONES[name].config)
    if name == ESCAIP:
        config["backbone"]["use_pbc"] = False
    torch.manual_seed(0)
    return HydraModel(**config).eval().float()


def freeze(name: str, model: HydraModel, structures: list[Atoms]):
    data = small.batch(structures, double=False)
    return data, HydraForceField.frozen(model, backbones.tasks(name), data)


@every
@pytest.mark.parametrize("pbc", [(True, True, False), True])
def test_slab_with_fixed_atoms(name, pbc):
    atoms = slab(pbc)
    assert backbone_checks.force_differences(name, [atoms], double=True)[0] < 1e-12
    assert backbone_checks.derivative_error(name, [atoms]) < 1e-6
    data = small.batch([atoms], double=False)
    assert data.fixed.tolist() == [1, 0, 0, 0] and data.tags.tolist() == [3, 2, 1, 0]
    operator = IS2RS().operator(backbones.model(name, False), backbones.tasks(name), data)
    moved = (operator(data.pos) - data.pos).norm(dim=-1)
    assert moved[0] == 0 and (moved[1:] > 0).all()
    assert operator.vjp(data.pos, torch.ones_like(data.pos))[0].norm() == 0
    assert not operator.pin.any()


@every
def test_slab_hanging_out_of_its_cell(name):
    """Along the open direction nothing may be wrapped, whatever always_use_pbc says."""
    model = backbones.model(name, False)
    if name != ESCAIP and name != ALLSCAIP:
        model.backbone.always_use_pbc = True
    data, field = freeze(name, model, [slab()])
    low, below = freeze(name, model, [slab(lower=8.0)])
    assert (low.pos[:, 2] < 0).any()
    torch.testing.assert_close(below(low.pos), field(data.pos), rtol=1e-4, atol=1e-5)


@every
def test_molecule_without_cell(name):
    model = without_pbc(name)
    water = molecule("H2O")
    data, field = freeze(name, model, [water])
    plain = backbone_checks.unmodified_forces(model, backbones.tasks(name)[0], data)
    torch.testing.assert_close(field(data.pos).detach(), plain, rtol=1e-4, atol=1e-6)
    in_box, box = freeze(name, backbones.model(name, False), [boxed(water)])
    assert box.batch.nedges.tolist() == field.batch.nedges.tolist()


def test_molecule_in_a_model_that_makes_everything_periodic():
    with pytest.raises(ValueError, match=r"not periodic.*use_pbc: false"):
        freeze(ESCAIP, backbones.model(ESCAIP, False), [molecule("H2O")])
    model = backbones.model(ESEN, False)
    model.backbone.always_use_pbc, model.backbone.radius_pbc_version = True, 1
    with pytest.raises(ValueError, match=r"not periodic.*always_use_pbc: false"):
        freeze(ESEN, model, [molecule("H2O")])


@every
def test_periodic_structure_without_volume_is_named(name):
    data = small.batch([boxed(molecule("H2O")), boxed(pair(1.2))], double=False)
    data.cell[1, 2] = 0
    with pytest.raises(ValueError, match=r"\['s1'\] are periodic.*no volume"):
        HydraForceField.frozen(backbones.model(name, False), backbones.tasks(name), data)


@every
def test_atoms_without_neighbours_go_through_algorithm_1(name):
    """Alone they feel no force after the drift is removed, and do not disturb their companions."""
    model = without_pbc(name)
    lonely = [Atoms("O"), pair(9.0)]
    data = small.batch([*lonely, molecule("H2O")], double=False)
    task = IS2RS(alpha=0.01)
    operator = task.operator(model, backbones.tasks(name), data)
    forces = operator.forces(data.pos)
    assert forces[0].abs().max() == 0 and torch.isfinite(forces).all()
    target = data.pos + 0.05 * torch.randn(data.pos.shape, generator=torch.manual_seed(0))
    method = {"horizon": 3, "max_steps": 10, "fmax": 0.05, "adjoint": GMRES(max_vjps=5)}
    report = make_signal("gdeq", **method)(operator, data.pos, target)
    assert np.isfinite(report.loss) and report.converged[0] and not report.diverged.any()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)

    data = small.batch(lonely, double=False)  # no neighbours in the whole batch
    operator = task.operator(model, backbones.tasks(name), data)
    assert torch.isfinite(operator.vjp(data.pos, torch.ones_like(data.pos))).all()
    task = IS2RS(relaxer=Relaxer(max_steps=3))
    records, ends = task.relax(model, backbones.tasks(name), data)
    assert records[0].converged and torch.isfinite(ends).all()


KINDS = {
    "slab": slab(),
    "crystal": small.silicon(1)[0],
    "water": boxed(molecule("H2O")),
    "atom": boxed(Atoms("O")),
    "far": boxed(pair(5.5)),
}


@cache
def alone(name: str, kind: str) -> torch.Tensor:
    data, field = freeze(name, backbones.model(name, False), [KINDS[kind]])
    return field(data.pos).detach()


@every
@settings(max_examples=8, deadline=None)
@given(kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4))
def test_companions_do_not_matter(name, kinds):
    """Forces of a structure are its own, in any company and order."""
    data, field = freeze(name, backbones.model(name, False), [KINDS[k] for k in kinds])
    expected = torch.cat([alone(name, k) for k in kinds])
    torch.testing.assert_close(field(data.pos).detach(), expected, rtol=1e-3, atol=2e-5)
