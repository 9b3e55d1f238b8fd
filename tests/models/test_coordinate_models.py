"""ADAPT and ResMLP: padding, permutation, one map in training and evaluation, clear refusals."""

import pytest
import torch
from fairchem.core.common.registry import registry

from fairchem_gdeq.models.descriptors import PROPERTIES, descriptor_table
from fairchem_gdeq.testing.fairchem2 import small


def forces(model, structures):
    return model(small.batch(structures))["forces"]["forces"]


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_batch_equals_one_at_a_time(kind):
    model, structures = small.model(kind), small.silicon(3)
    together = forces(model, structures)
    apart = torch.cat([forces(model, [a]) for a in structures])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_adapt_is_equivariant_under_permutation():
    model, (atoms, *_) = small.model("adapt"), small.silicon(1)
    order = torch.randperm(len(atoms), generator=torch.Generator().manual_seed(0)).tolist()
    turned = forces(model, [atoms[order]])
    torch.testing.assert_close(turned, forces(model, [atoms])[order], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_training_and_evaluation_are_the_same_map(kind):
    model, structures = small.model(kind), small.silicon(2)
    torch.testing.assert_close(
        forces(model.train(), structures), forces(model.eval(), structures), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["adapt", "resmlp"])
def test_species_and_every_coordinate_matter(kind):
    model, (atoms, *_) = small.model(kind), small.silicon(1)
    before = forces(model, [atoms])
    other = atoms.copy()
    other.symbols[0] = "O"
    assert (forces(model, [other]) - before).abs().max() > 1e-6
    data = small.batch([atoms])
    data.pos.requires_grad_(True)
    (g,) = torch.autograd.grad(model(data)["forces"]["forces"].square().sum(), data.pos)
    assert (g.abs() > 1e-12).all()


def test_resmlp_names_the_structure_that_is_too_large():
    large = small.silicon(1)[0] * (1, 1, 2)
    with pytest.raises(ValueError, match=r"s1 has 16 atoms.*max_atoms=12"):
        forces(small.model("resmlp"), [small.silicon(1)[0], large])


def test_adapt_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=3 must divide width=16"):
        registry.get_model_class("fairchem_gdeq.models.adapt.ADAPTBackbone")(width=16, heads=3)


def test_descriptors_are_standardised_and_tell_elements_apart():
    table = descriptor_table()
    assert table.shape == (119, len(PROPERTIES)) and torch.isfinite(table).all()
    used = table[[5, 6, 7, 8, 13, 14, 15, 16, 31, 32, 33, 34, 50]]
    assert len(torch.unique(used, dim=0)) == 13
    assert used.abs().max() < 5


@pytest.mark.parametrize("name", ["adapt_backbone", "resmlp_backbone"])
def test_registered_in_fairchem(name):
    import fairchem_gdeq.models  # noqa: F401

    assert registry.get_model_class(name).__module__.startswith("fairchem_gdeq.models")
