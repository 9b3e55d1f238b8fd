"""Each term of eq. 7 on two atoms, worked out by hand."""

import pytest
import torch

from fairchem_gdeq.relax import Structures
from fairchem_gdeq.relaxnet.dynamics import Path
from fairchem_gdeq.relaxnet.loss import (
    Reference,
    RelaxNetLoss,
    direction_term,
    energy_term,
    monotonic_term,
    square_term,
)


def atoms(free=(True, True), batch=(0, 0)):
    count = batch[-1] + 1
    return Structures(
        batch=torch.tensor(batch),
        free=torch.tensor(free),
        masses=torch.ones(len(batch)),
        cell=torch.eye(3).repeat(count, 1, 1),
        pbc=torch.zeros(count, 3, dtype=torch.bool),
    )


def along(*frames):
    """[T, 2, 3] of x coordinates of two atoms."""
    out = torch.zeros(len(frames), 2, 3)
    out[:, :, 0] = torch.tensor(frames)
    return out


def test_energy_is_an_absolute_error_of_frames_and_structures():
    predicted = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    true = torch.tensor([[2.0, 5.0], [1.0, 4.0]])
    assert float(energy_term(predicted, true)) == (1 + 0 + 2 + 1) / 4


def test_only_rises_of_the_energy_count():
    energies = torch.tensor([[3.0, 0.0], [1.0, 2.0], [1.5, 1.0]])  # -2, +0.5 and +2, -1
    assert float(monotonic_term(energies)) == (0.5 + 2) / 4


def test_squares_are_a_mean_over_coordinates_of_free_atoms():
    true, predicted = along([0.0, 0.0], [1.0, 2.0]), along([0.0, 0.0], [1.5, 4.0])
    both, one = (
        square_term(predicted, true, atoms(free)) for free in ((True, True), (True, False))
    )
    assert float(both) == pytest.approx((0.5**2 + 2**2) / 12)
    assert float(one) == pytest.approx(0.5**2 / 6)  # two frames of one free atom


def test_structures_of_other_sizes_weigh_the_same():
    true = torch.zeros(2, 3, 3)
    predicted = true.clone()
    predicted[:, 0, :] = 1.0  # a structure of one atom is wrong by 1, one of two is right
    assert float(square_term(predicted, true, atoms((True,) * 3, (0, 1, 1)))) == pytest.approx(0.5)


def test_directions_weigh_by_the_true_way():
    true = along([0.0, 0.0], [3.0, 1.0])
    right_and_wrong = along([0.0, 0.0], [0.1, -2.0])  # cosines 1 and -1
    assert float(direction_term(right_and_wrong, true, atoms())) == pytest.approx(
        2 * 1 / 4, rel=1e-4
    )
    free = atoms((True, False))
    assert float(direction_term(right_and_wrong, true, free)) == pytest.approx(0.0, abs=1e-6)
    across = true.clone()
    across[1, :, 1], across[1, :, 0] = true[1, :, 0], 0.0
    assert float(direction_term(across, true, atoms())) == pytest.approx(1.0)
    nobody = along([0.0, 0.0], [5e-4, 0.0])  # nearer than M
    assert float(direction_term(across, nobody, atoms())) == 0.0


def test_a_model_at_rest_has_a_gradient_of_its_direction():
    ends = torch.zeros(2, 2, 3, requires_grad=True)
    direction_term(ends, along([0.0, 0.0], [3.0, 1.0]), atoms()).backward()
    assert bool(torch.isfinite(ends.grad).all()) and ends.grad[1, 0, 0] < 0


def test_the_loss_is_the_weighted_sum_of_its_terms():
    path = Path(
        along([0.0, 0.0], [1.0, 1.0]),
        torch.tensor([[1.0], [3.0]]),
        along([1.0, 1.0], [0.0, 0.0]),
        7,
    )
    reference = Reference(
        along([0.0, 0.0], [2.0, -1.0]), torch.tensor([[1.0], [0.0]]), along([0.0, 1.0], [0.0, 0.0])
    )
    value, terms = RelaxNetLoss(2.0, 3.0, 5.0, 7.0, 11.0)(path, reference, atoms())
    expected = {
        "energy": 1.5,
        "monotonic": 2.0,
        "forces": 1 / 12,
        "positions": (1 + 4) / 12,
        "direction": 2 * 1 / 3,
    }
    for name, each in expected.items():
        assert float(terms[name]) == pytest.approx(each, rel=1e-5), name
    weights = zip((2.0, 3.0, 5.0, 7.0, 11.0), expected.values(), strict=True)
    assert float(value) == pytest.approx(sum(w * each for w, each in weights), rel=1e-5)
    off, _ = RelaxNetLoss(1.0, 0.0, 0.0, 0.0, 0.0)(path, reference, atoms())
    assert float(off) == pytest.approx(1.5)
