"""Frames beside a real base and a run's structures in fairchem 1, as fairchem 2's are checked."""

import gc
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fairchem_gdeq.fairchem1.force_frames import Rows, open_frames
from fairchem_gdeq.fairchem1.force_settings import ForceSettings
from fairchem_gdeq.fairchem1.frame_checks import check_forces, sampled
from fairchem_gdeq.fairchem1.held_frames import force_errors, packs
from fairchem_gdeq.frozen.forward import evaluating
from fairchem_gdeq.testing.fairchem1 import small1
from fairchem_gdeq.testing.frames import write_frames
from fairchem_gdeq.training.frame_checks import SAMPLE
from fairchem_gdeq.training.run_frames import structures_of
from tests.fairchem1 import running

HARTREE_PER_BOHR = 27.2114 / 0.529177


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with running.trainer_on(tmp_path_factory.mktemp("inputs")) as made:
        yield made


slabs = partial(running.slabs, first=40)


def of_the_base(trainer, structures):
    """Its forces [n, 3] of each structure, eV/Angstrom."""
    return [forces_of(trainer.base.model, atoms) for atoms in structures]


def forces_of(model, atoms):
    """[n, 3], eV/Angstrom, without the dropout of its training mode."""
    with evaluating(model):
        return running.RMSD * small1.forces(model, atoms)


def check(trainer, folder, structures, labels, **settings):
    """As training begins with these frames."""
    write_frames(folder, structures, labels=labels)
    forces = ForceSettings(src=str(folder), batch_size=3, **settings)
    replay = forces.replay.open(trainer, lambda batch: trainer.field_of(trainer.base.model, batch))
    trainer.settings = SimpleNamespace(forces=forces)
    check_forces(trainer, replay.batches)
    return replay.batches


@pytest.fixture(autouse=True)
def _settings(trainer):
    """Those of the trainer again."""
    before = trainer.settings
    yield
    trainer.settings = before
    gc.collect()  # LMDB opens a file once in a process


def test_good_frames_pass_without_a_word(trainer, tmp_path, caplog):
    structures = slabs(8)
    check(trainer, tmp_path / "frames", structures, of_the_base(trainer, structures))
    assert not [each for each in caplog.records if each.message.startswith("frames ")]


@pytest.mark.parametrize("factor", [1 / HARTREE_PER_BOHR, -1.0])
def test_forces_of_another_unit_or_sign_are_refused(trainer, tmp_path, factor):
    structures = slabs(8)
    labels = [factor * forces for forces in of_the_base(trainer, structures)]
    for atoms, label in zip(structures, labels, strict=True):
        label[atoms.constraints[0].index] = 0.0  # as files have it on fixed atoms
    said = "gradients of the energy" if factor < 0 else r"in Hartree/Bohr.*multiply them by 51\.4"
    with pytest.raises(ValueError, match=said):
        check(trainer, tmp_path / "frames", structures, labels)


def test_the_sample_is_small_and_always_the_same(trainer, tmp_path):
    structures = slabs(SAMPLE + 5)
    labels = [np.ones((len(atoms), 3)) for atoms in structures]
    write_frames(tmp_path / "frames", structures, labels=labels)
    forces = ForceSettings(src=str(tmp_path / "frames"), batch_size=10)
    batches = forces.replay.open(trainer, None).batches
    first, again = ([sid for batch in sampled(batches) for sid in batch.sid] for _ in range(2))
    assert first == again != sorted(first) and len(set(first)) == SAMPLE


def test_an_element_that_the_base_does_not_know(trainer, tmp_path):
    structures = slabs(6)
    structures[5].symbols[2] = "U"
    labels = [np.ones((len(atoms), 3)) for atoms in structures]
    with pytest.raises(ValueError, match=r"frame5 has U \(atomic number 92\).*up to 89 \(Ac\)"):
        check(trainer, tmp_path / "frames", structures, labels)


def test_frames_without_an_element_that_is_trained_on(trainer, tmp_path, caplog):
    structures = slabs(6)
    for atoms in structures:
        atoms.symbols[:-1] = "Ti"
    check(trainer, tmp_path / "frames", structures, of_the_base(trainer, structures))
    assert "none has Pt, which training structures have" in caplog.text


@pytest.mark.parametrize(("split", "key"), [("val", "X_0"), ("test", "X_gt")])
def test_frames_of_a_held_out_split_are_refused_whatever_they_are_called(
    trainer, tmp_path, split, key
):
    """In another order and other images."""
    rows = Rows(getattr(trainer, f"{split}_loader").dataset)
    held = {each.name: each.atoms for each in structures_of(f"split {split}", rows)}
    name = f"{key} of {split}0 in split {split}"
    frames = [*slabs(3), held[name][::-1]]
    frames[-1].positions[2] -= frames[-1].cell[0]
    with pytest.raises(ValueError, match=f"1 of them .*: frame3 is {name}"):
        check(trainer, tmp_path / "frames", frames, of_the_base(trainer, frames))


def test_frames_that_are_held_out_frames_are_refused(trainer, tmp_path):
    frames, held = slabs(6), slabs(6)[4:5]
    write_frames(tmp_path / "held", held)
    with pytest.raises(ValueError, match=r"frame4 is frame0 in task\.forces\.val"):
        check(
            trainer,
            tmp_path / "frames",
            frames,
            of_the_base(trainer, frames),
            val=str(tmp_path / "held"),
        )


def test_held_frames_are_opened_where_nothing_is_trained_on(trainer, tmp_path):
    trainer.settings = SimpleNamespace(forces=ForceSettings(val=str(tmp_path / "nowhere")))
    expected = r"frames .*nowhere: no such file.*do without them: --task\.forces\.val=None"
    with pytest.raises(FileNotFoundError, match=expected):
        check_forces(trainer, None)


def test_the_force_error_is_of_free_atoms_of_all_frames(trainer, tmp_path):
    structures = slabs(5)
    labels = of_the_base(trainer, structures)
    write_frames(tmp_path / "frames", structures, labels=labels)
    frames, budget = open_frames(str(tmp_path / "frames"), key="val"), 30
    assert [len(pack) for pack in packs(frames, budget)] == [2, 2, 1]
    assert [len(pack) for pack in packs(frames, 5)] == [1] * 5  # larger ones are alone
    other = small1.model(running.KIND, seed=1)
    models = {"base": trainer.base.model, "tuned": other}
    found = force_errors(frames, models, trainer.field_of, budget, torch.device("cpu"))
    assert found["base"]["force_mae"] == pytest.approx(0.0, abs=1e-5)
    errors = []
    for atoms, label in zip(structures, labels, strict=True):
        free = np.setdiff1d(np.arange(len(atoms)), atoms.constraints[0].index)
        errors.append(np.abs(forces_of(other, atoms) - label)[free])
    expected = np.concatenate(errors).mean()
    assert found["tuned"]["force_mae"] == pytest.approx(expected, rel=1e-4)
