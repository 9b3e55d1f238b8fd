"""Frames written for another program, and what is refused of what comes back."""

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from fairchem_gdeq.explore import Folder, read_labels
from fairchem_gdeq.fairchem2.replay import ForceReplay
from fairchem_gdeq.testing.fairchem2 import small
from tests.explore.conftest import REFERENCE, rows_of
from tests.explore.reference import PARAMETERS


@pytest.fixture
def written(explore, tmp_path):
    """A folder, and the images of its frames as another program labels them."""
    explore(tmp_path / "out", label=("--write", tmp_path / "frames.extxyz"))
    images = read(tmp_path / "frames.extxyz", ":")
    for image in images:
        image.calc = LennardJones(**PARAMETERS)
        forces = image.get_forces(apply_constraint=False)
        energy = image.get_potential_energy()
        image.wrap()  # as many programs do
        image.calc = SinglePointCalculator(image, energy=energy, forces=forces)
    return tmp_path / "out", images


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_labels_that_were_read_are_those_that_a_calculator_makes(
    suffix, written, explore, tmp_path, capsys
):
    folder, images = written
    write(tmp_path / f"half.{suffix}", images[::2])
    explore(folder, label=("--read", tmp_path / f"half.{suffix}"))
    assert "10 frames labelled" in capsys.readouterr().out and len(rows_of(folder)) == 10
    explore(folder, label=("--write", tmp_path / "rest.extxyz"))
    assert [image.info["sid"] for image in read(tmp_path / "rest.extxyz", ":")] == [
        image.info["sid"] for image in images[1::2]
    ]
    write(tmp_path / f"all.{suffix}", images)
    explore(folder, label=("--read", tmp_path / f"all.{suffix}"))
    assert "10 frames labelled" in (said := capsys.readouterr().out) and "10 in it had" in said
    explore(tmp_path / "direct")
    found, expected = rows_of(folder), rows_of(tmp_path / "direct")
    assert list(found) == list(expected)
    for sid, frame in found.items():
        np.testing.assert_allclose(frame.positions, expected[sid].positions, atol=1e-4)
        np.testing.assert_allclose(frame.get_forces(), expected[sid].get_forces(), atol=1e-2)
        assert frame.get_potential_energy() == pytest.approx(
            expected[sid].get_potential_energy(), abs=1e-2
        )
    with pytest.raises(SystemExit, match="another reference: calculator: labels read from files"):
        explore(folder, label=("--calculator", REFERENCE))


def test_labels_without_energies_train(written, explore, tmp_path):
    """fairchem reads forces alone."""
    folder, images = written
    for image in images:
        del image.calc.results["energy"]
    write(tmp_path / "labelled.traj", images)
    explore(folder, label=("--read", tmp_path / "labelled.traj"))
    assert not any("energy" in frame.calc.results for frame in rows_of(folder).values())
    (task,) = small.tasks()
    settings = ForceReplay(src=str(folder), dataset="si", max_atoms=16)
    batches = settings.open(task, small.model("esen", double=False))
    assert len(batches.frames) == 20 and batches(0, None, None)[batches.task.name].any()


def spoiled(images):
    """What may be wrong with an image of row1's start, and what is said of it."""
    first = [image.info["sid"] for image in images].index("row1_step0")

    def bare(image):
        image.calc = None

    def spoil(image):
        image.calc.results["forces"][1, 1] = np.inf

    def endless(image):
        image.calc.results["energy"] = np.nan

    def moved(image):
        labels = dict(image.calc.results)
        image.positions[4] += 0.01
        image.calc = SinglePointCalculator(image, **labels)

    def swapped(image):
        labels = dict(image.calc.results)
        image.numbers[[2, 3]] = image.numbers[[3, 2]]
        image.calc = SinglePointCalculator(image, **labels)

    def renamed(image):
        image.info["sid"] = "row9_step0"

    def nameless(image):
        del image.info["sid"]

    def other_cell(image):
        labels = dict(image.calc.results)
        image.set_cell(image.cell * 1.01)
        image.calc = SinglePointCalculator(image, **labels)

    said = {
        bare: "row1_step0: no forces",
        spoil: "row1_step0: forces contain NaN or infinity",
        endless: "row1_step0: the energy is not finite",
        moved: r"row1_step0: atom 4 lies 0\.0173 Angstrom from where it was written",
        swapped: "row1_step0: species order differs: atom 2 is Si at the start",
        renamed: "no frame row9_step0 was written from",
        nameless: f"frame {first}: no sid in its info",
        other_cell: "row1_step0: the cell changes",
    }
    return first, said


def test_images_that_are_not_the_frames_are_named(written, tmp_path):
    folder, images = written
    first, said = spoiled(images)
    for spoil, what in said.items():
        bad = [image.copy() for image in images]
        for image, good in zip(bad, images, strict=True):
            results = {key: np.copy(value) for key, value in good.calc.results.items()}
            image.calc = SinglePointCalculator(image, **results)
        spoil(bad[first])
        write(tmp_path / "bad.traj", bad)
        with pytest.raises(ValueError, match=f"1 of 20 rows cannot be used: .*{what}"):
            read_labels(tmp_path / "bad.traj", Folder(folder))
    write(tmp_path / "twice.extxyz", [*images, images[first]])
    with pytest.raises(ValueError, match=r"frame 20: row1_step0 is there twice.*nothing was taken"):
        read_labels(tmp_path / "twice.extxyz", Folder(folder))
    assert not any(record.labelled.any() for _, record in Folder(folder).records())
    (tmp_path / "notes.extxyz").write_text("none\n")
    with pytest.raises(ValueError, match="ASE cannot read it"):
        read_labels(tmp_path / "notes.extxyz", Folder(folder))
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "missing.extxyz", Folder(folder))
