"""Batches of different structures, positions outside the cell, graphs that change."""

import dataclasses

import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc100

from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.graphs import join_graphs
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones
from fairchem_gdeq.testing.precision import double_precision

FAMILIES = pytest.mark.parametrize(
    "name", ["EquiformerV2", "eSCN", "eSEN", "SCN", "GemNet-OC", "GemNet-dT", "PaiNN"]
)


def crystal() -> Atoms:
    """A rattled cell, smaller than the cutoff."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    atoms.positions += 0.3
    atoms.set_tags([1] * len(atoms))
    return atoms


def mixed() -> list[Atoms]:
    """Structures of different sizes and cells."""
    return [backbones.slab(0), crystal(), backbones.slab(1, layers=3, width=1)]


def same_graph(a, b) -> None:
    for field in dataclasses.fields(a)[:3]:
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name
    assert a.extra.keys() == b.extra.keys()
    assert all(torch.allclose(a.extra[key].double(), b.extra[key].double()) for key in a.extra)


@FAMILIES
def test_structures_in_company_are_as_alone(name):
    """Frozen together, selected from a batch, and joined from parts: the same forces and graphs."""
    with double_precision():
        data = backbones.batch(mixed(), double=True)
        field = backbone_checks.field_of(name, data, double=True)
        moved = backbone_checks.nudged(data, 0.1, field)
        together, sizes = field(moved).detach(), data.natoms.tolist()
        alone = []
        for i, atoms in enumerate(mixed()):
            one = backbones.batch([atoms], double=True)
            alone.append(OCPForceField.frozen(field.model, one, backbone_checks.denorm))
            found = alone[-1](moved.split(sizes)[i]).detach()
            torch.testing.assert_close(found, together.split(sizes)[i], rtol=1e-7, atol=1e-9)

        keep = torch.tensor([True, False, True])
        picked = field.select(keep)
        same_graph(picked.graph, join_graphs([alone[0].graph, alone[2].graph], sizes[::2]))
        atoms = keep[data.batch]
        torch.testing.assert_close(
            picked(moved[atoms]).detach(), together[atoms], rtol=1e-7, atol=1e-9
        )
        assert picked.batch.sid == ["s0", "s2"]
        none = picked.select(torch.tensor([False, False]))
        assert len(none.batch.natoms) == len(none.batch.pos) == len(none.graph.neighbors) == 0
        again = none.join([none]).select(torch.zeros(0, dtype=torch.bool)).join([picked])
        same_graph(again.graph, picked.graph)

        joined = alone[0].join(alone[1:])
        same_graph(joined.graph, field.graph)
        torch.testing.assert_close(joined(moved).detach(), together, rtol=1e-7, atol=1e-9)


@FAMILIES
def test_atoms_outside_the_cell(name):
    """Whole cells and rigid shifts change nothing, where fairchem 1 itself misses neighbours."""
    with double_precision():
        data = backbones.batch(backbones.slabs(), double=True)
        field = backbone_checks.field_of(name, data, double=True)
        cells = torch.randint(-2, 3, data.pos.shape, generator=torch.manual_seed(0)).double()
        outside = data.pos + torch.einsum("ni,nij->nj", cells, data.cell[data.batch])
        fresh = field.freeze(outside)
        assert fresh.graph.neighbors.tolist() == field.graph.neighbors.tolist()
        # Frames roll by which edge it is, images included, and forces hardly depend on them.
        expected = field(data.pos).detach()
        allowed = 5e-3 if name == "SCN" else 1e-5
        assert backbone_checks.relative(fresh(outside).detach(), expected) < allowed
        torch.testing.assert_close(field(data.pos + 1.7).detach(), expected, rtol=1e-7, atol=1e-8)


@FAMILIES
def test_a_frozen_graph_stays_and_a_live_one_follows(name):
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of(name, data)
    moved = data.pos.clone()
    moved[0, :2] += 1.2
    changed = field.edges_changed(moved)
    assert changed[0] > 0 and changed[1] == 0
    assert field.edges_changed(data.pos).tolist() == [0, 0]
    live = field.unfreeze()
    fresh = field.freeze(moved)
    torch.testing.assert_close(live(moved), fresh(moved))
    assert not torch.allclose(field(moved), fresh(moved), rtol=1e-3)
    with pytest.raises(ValueError, match="holds no graph"):
        live.edges_changed(moved)
    assert live.join([live]).graph is None and live.select(torch.tensor([True, False]))


def test_skin_is_the_nearest_pair_to_the_cutoff():
    data = backbones.batch(backbones.slabs())
    field = backbone_checks.field_of("eSEN", data)
    skin = field.skin()
    assert (skin > 0).all() and (skin <= 0.5).all()
    small = 0.4 * skin.min() * torch.nn.functional.normalize(torch.randn(data.pos.shape), dim=-1)
    assert field.edges_changed(data.pos + small).sum() == 0
    assert backbone_checks.field_of("PaiNN", data).skin().isnan().all(), "12 of more neighbours"
    assert backbone_checks.field_of("GemNet-OC", data).skin().isnan().all()


@FAMILIES
def test_slab_as_cut_from_a_crystal_has_derivatives_like_any_other(name):
    """Atoms in line, equal distances, edges along the axes. GemNet-OC as shipped: 1e4 times more."""
    norms = []
    for rattle in (0.0, 0.1):
        atoms = fcc100("Cu", (2, 2, 2), vacuum=4.0)
        atoms.pbc = True
        atoms.set_tags([1] * len(atoms))
        atoms.positions += 0.2
        atoms.rattle(rattle, seed=0)
        data = backbones.batch([atoms])
        field = backbone_checks.field_of(name, data)
        lam = torch.randn(data.pos.shape, generator=torch.manual_seed(0))
        norms.append((backbone_checks.operator_of(field).vjp(data.pos, lam) - lam).norm())
        plain = backbone_checks.unmodified(field.model, data, field=field)
        assert backbone_checks.relative(field(data.pos).detach(), plain) < 1e-4
    assert norms[0] < 20 * norms[1]


def test_periodic_structure_without_volume_is_named():
    data = backbones.batch(mixed())
    data.cell[1, 2] = 0
    with pytest.raises(ValueError, match=r"\['s1'\] are periodic.*no volume"):
        backbone_checks.field_of("PaiNN", data)


def test_structures_without_neighbours():
    """As far as the models go; where they do not, the structure is named."""
    alone = Atoms("O", positions=[[1, 1, 1]], cell=[18] * 3, pbc=True)
    with_slab, by_itself = backbones.batch([backbones.slab(), alone]), backbones.batch([alone])
    for name in ("EquiformerV2", "eSCN", "SCN", "GemNet-OC", "eSEN"):
        operator = backbone_checks.operator_of(backbone_checks.field_of(name, with_slab))
        assert torch.isfinite(operator.vjp(with_slab.pos, torch.ones_like(with_slab.pos))).all()
        if name == "eSEN":
            assert backbone_checks.field_of(name, by_itself)(by_itself.pos).abs().max() < 1e-6
            continue
        with pytest.raises(ValueError, match=r"\['s0'\] have no neighbours"):
            backbone_checks.field_of(name, by_itself)
    for name in ("GemNet-dT", "PaiNN"):
        with pytest.raises(ValueError, match=r"\['s1'\] have no neighbours"):
            backbone_checks.field_of(name, with_slab)


def test_batches_as_other_data_sets_have_them():
    """pbc collated to one row, numbered ids, a graph of the data set's own, integer elements."""
    data = backbones.batch(backbones.slabs())
    expected = backbone_checks.field_of("PaiNN", data)(data.pos)
    data.pbc = torch.ones(6, dtype=torch.bool)
    data.sid = torch.tensor([7, 8])
    data.edge_index = torch.zeros(2, 3, dtype=torch.long)
    data.neighbors = torch.tensor([2, 1])
    data.atomic_numbers = data.atomic_numbers.long()
    field = backbone_checks.field_of("PaiNN", data)
    torch.testing.assert_close(field(data.pos), expected)
    assert field.batch.sid == ["7", "8"]
