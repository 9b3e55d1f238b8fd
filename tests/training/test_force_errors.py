"""Forces beside labels: which atoms count, how many frames, and the mean error."""

from types import SimpleNamespace

import pytest
import torch

from fairchem_gdeq.training.force_errors import Compared, agreement_of, compared, force_scores
from fairchem_gdeq.training.frame_checks import SAMPLE


def test_fixed_atoms_do_not_count():
    batch = SimpleNamespace(fixed=torch.tensor([0, 1, 0]), natoms=torch.tensor([2, 1]))
    labels = torch.arange(9.0).view(3, 3)
    found = compared(batch, -labels, labels)
    assert found.frames == 2
    assert torch.equal(found.labels, labels[[0, 2]])
    assert torch.equal(found.predicted, -labels[[0, 2]])


def test_no_more_frames_are_asked_for_than_the_sample_has():
    asked = []

    def batches():
        for number in range(100):
            asked.append(number)
            forces = torch.randn(20, 3, generator=torch.Generator().manual_seed(number))
            yield Compared(forces, 2 * forces, 10)

    found = agreement_of(batches())
    assert found.ratio == pytest.approx(2.0) and found.correlation == pytest.approx(1.0)
    assert len(asked) == -(-SAMPLE // 10) and found.components == 60 * len(asked)


def test_the_error_is_a_mean_over_components_whatever_batches_they_are_in():
    off = {"one": 1.0, "two": 2.0}
    models = {name: torch.nn.Linear(1, 1) for name in off}

    def batches_of(model):
        by = next(off[name] for name, each in models.items() if each is model)
        for size, share in ((1, 0.0), (3, 1.0)):  # a quarter of the atoms is right
            yield Compared(torch.full((size, 3), by * share), torch.zeros(size, 3), 1)

    assert force_scores(models, batches_of) == {
        "one": {"force_mae": pytest.approx(0.75)},
        "two": {"force_mae": pytest.approx(1.5)},
    }
    assert force_scores({"none": models["one"]}, lambda model: ())["none"] == {"force_mae": 0.0}
