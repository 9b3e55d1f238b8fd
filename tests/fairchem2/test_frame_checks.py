"""Frames beside a real model and a run's structures: what is refused, and the force error."""

import numpy as np
import pytest
import torch

from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.fairchem2.frame_checks import check_frames, sampled
from fairchem_gdeq.fairchem2.held_frames import HeldFrames
from fairchem_gdeq.fairchem2.replay import ForceReplay
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.testing.frames import write_frames
from fairchem_gdeq.training.force_errors import agreement_of
from fairchem_gdeq.training.frame_checks import SAMPLE
from fairchem_gdeq.training.run_frames import structures_of

HARTREE_PER_BOHR = 27.2114 / 0.529177
ELEMENTS = {14, 32}


def potential(seed=0):
    return Potential(small.model("esen", double=False, seed=seed), small.tasks(), "si")


def write(folder, structures, forces):
    """Frames with these forces [n, 3] each."""
    write_frames(folder, structures, labels=forces)
    return folder


def opened(folder, model, **settings):
    settings = {"max_atoms": 40, **settings}
    (task,) = small.tasks()
    return ForceReplay(str(folder), "si", **settings).open(task, model)


@pytest.fixture
def structures():
    """All atoms but one free, so that labels on fixed ones, which files have as zero, do not count."""
    return small.silicon(12, fixed=(1,))


@pytest.mark.parametrize("factor", [1 / HARTREE_PER_BOHR, -1.0])
def test_forces_of_another_unit_or_sign_are_refused(structures, tmp_path, factor):
    base = potential()
    labels = [factor * forces for forces in base.forces(structures)]
    for label in labels:
        label[1] = 0.0
    batches = opened(write(tmp_path, structures, labels), base.model)
    found = agreement_of(sampled(batches, base.model))
    assert found.correlation == pytest.approx(np.sign(factor)) and found.components % 3 == 0
    assert found.ratio == pytest.approx(factor, rel=1e-3)
    said = "gradients of the energy" if factor < 0 else r"in Hartree/Bohr.*multiply them by 51\.4"
    with pytest.raises(ValueError, match=said):
        check_frames(batches, base.model, ELEMENTS, [])


def test_the_sample_is_small_and_always_the_same(tmp_path):
    base = potential()
    many = small.silicon(150)
    batches = opened(write(tmp_path, many, base.forces(many)), base.model)
    found = agreement_of(sampled(batches, base.model))
    assert found.ratio == pytest.approx(1.0, rel=1e-3)
    assert 3 * 6 * SAMPLE <= found.components < 3 * 8 * (SAMPLE + 7)
    assert agreement_of(sampled(batches, base.model)) == found


def test_an_element_that_the_model_does_not_know(structures, tmp_path):
    structures[5].symbols[2] = "Fm"  # 100; embeddings are of the elements up to 99
    base = potential()
    forces = [np.ones((len(atoms), 3)) for atoms in structures]
    batches = opened(write(tmp_path, structures, forces), base.model)
    with pytest.raises(ValueError, match=r"frame5 has Fm \(atomic number 100\).*up to 99 \(Es\)"):
        check_frames(batches, base.model, ELEMENTS, [])


def test_frames_of_a_held_out_split_are_refused_whatever_they_are_called(structures, tmp_path):
    """By start and by target, in another order and other images."""
    from fairchem_gdeq.data.is2rs import IS2RSDataset

    small.write_is2rs(tmp_path / "test", structures[:3])
    rows = IS2RSDataset({"src": str(tmp_path / "test"), "a2g_args": {"task_name": "si"}})
    held = list(structures_of("split test", rows))
    assert [each.name for each in held[:2]] == [
        "X_0 of row0 in split test",
        "X_gt of row0 in split test",
    ]
    base = potential()
    for known in held[:2]:
        frames = [*structures[3:], known.atoms[::-1]]
        frames[-1].positions[2] -= frames[-1].cell[0]
        folder = write(tmp_path / known.name.split()[0], frames, base.forces(frames))
        batches = opened(folder, base.model)
        with pytest.raises(ValueError, match=f"1 of them .*: frame9 is {known.name}"):
            check_frames(batches, base.model, ELEMENTS, held)
        check_frames(batches, base.model, ELEMENTS, held[2:])


def test_frames_larger_than_a_batch_are_said(structures, tmp_path, caplog):
    base = potential()
    folder = write(tmp_path, structures, base.forces(structures))
    opened(folder, base.model, max_atoms=7)
    assert "4 of 12 structures have more atoms than a batch may (7): up to 8" in caplog.text


def test_the_force_error_is_of_free_atoms_of_all_frames(structures, tmp_path):
    base, tuned = potential(), potential(seed=1)
    folder = write(tmp_path, structures, base.forces(structures))
    device = torch.device("cpu")
    (task,) = small.tasks()
    held = HeldFrames(str(folder), "si", 20)
    models = {"base": base.model, "tuned": tuned.model}
    scores = held.scores(task, models, device)
    assert scores["base"]["force_mae"] == pytest.approx(0.0, abs=1e-6)
    errors = [
        np.abs(one - other)[[i for i in range(len(one)) if i != 1]]
        for one, other in zip(tuned.forces(structures), base.forces(structures), strict=True)
    ]
    expected = np.concatenate(errors).mean()
    assert scores["tuned"]["force_mae"] == pytest.approx(expected, rel=1e-4)
    assert HeldFrames(None, "si", 20).scores(task, models, device) == {}


def test_named_structures_are_what_checks_take(structures, tmp_path):
    """From Python as well: lists of structures."""
    base = potential()
    batches = opened(write(tmp_path, structures, base.forces(structures)), base.model)
    with pytest.raises(ValueError, match="frame2 is validation start 0"):
        check_frames(
            batches, base.model, ELEMENTS, [Named("validation start 0", structures[2].copy())]
        )
