"""Places of a structure, laid over each other: by the nearest image, without the rigid shift."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.geometry import find_mic

from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.overlays import overlay
from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.relax import Structures


class Row(SimpleNamespace):
    """A batch of one structure, of which an overlay wants this much."""

    def __contains__(self, key):
        return hasattr(self, key)


def example(fixed=(), pbc=(True, True, True)):
    """A target, an operator of it as far as it is asked, and a row of a batch."""
    atoms = bulk("Si", cubic=True)
    free = torch.ones(8, dtype=torch.bool)
    free[list(fixed)] = False
    s = Structures(
        batch=torch.zeros(8, dtype=torch.long),
        free=free,
        masses=torch.tensor(atoms.get_masses()),
        cell=torch.tensor(atoms.cell.array)[None],
        pbc=torch.tensor([pbc]),
    )
    row = Row(
        pos_relaxed=torch.tensor(atoms.positions),
        atomic_numbers=torch.tensor(atoms.numbers),
        sid=["s"],
        row=torch.tensor([7]),
    )
    pin = torch.tensor([0 if fixed else 1])
    return atoms, SimpleNamespace(structures=s, pin=pin), row


def moved(atoms, seed=0):
    """Its atoms displaced by up to 0.3 Angstrom, drifted, and wrapped into the cell."""
    moves = np.random.default_rng(seed).uniform(-0.3, 0.3, atoms.positions.shape)
    other = atoms.copy()
    other.positions += moves + np.array([0.4, 0.0, -0.9])
    other.wrap()
    return torch.tensor(other.positions), moves


def test_a_place_is_laid_over_the_target():
    atoms, operator, row = example()
    x, moves = moved(atoms)
    found = overlay(row, {"base": x}, operator)
    assert found.label == Label("s", 7) and found.free.all()
    np.testing.assert_allclose(found.target, atoms.positions)
    # All masses are equal: the rigid shift is the mean of the moves.
    np.testing.assert_allclose(
        found.places["base"] - found.target, moves - moves.mean(0), atol=1e-9
    )


@pytest.mark.parametrize("fixed", [(), (0, 3)])
def test_the_farthest_atom_is_as_far_as_the_record_says(fixed):
    atoms, operator, row = example(fixed)
    x = moved(atoms)[0]
    found = overlay(row, {"base": x}, operator)
    never = torch.tensor([False])
    (record,) = measure(
        [found.label],
        x,
        row.pos_relaxed,
        operator.structures,
        operator.pin,
        **dict.fromkeys(("converged", "cause"), never),
        evaluations=never.long(),
        residual=never.double(),
    )
    far = np.linalg.norm(found.places["base"] - found.target, axis=1)
    assert far.max() == pytest.approx(record.max_displacement, rel=1e-9)
    assert (far[list(fixed)] == 0).all()
    if fixed:  # nothing is shifted: ASE's nearest image
        move, length = find_mic(x.numpy() - atoms.positions, atoms.cell)
        np.testing.assert_allclose(far[1], length[1])


def test_open_directions_have_no_cell_and_lost_atoms_no_place():
    atoms, operator, row = example(pbc=(True, True, False))
    x = moved(atoms)[0]
    x[2, 1] = torch.nan
    found = overlay(row, {"X_0": row.pos_relaxed, "base": x}, operator)
    assert list(found.places) == ["X_0"]
    np.testing.assert_allclose(found.cell[:2], atoms.cell.array[:2])
    assert (found.cell[2] == 0).all()
