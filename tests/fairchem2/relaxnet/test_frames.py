"""Trajectories of labelled frames: their order, which frames are taken, and what is refused."""

import logging

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

from fairchem_gdeq.data.reading import BadRows
from fairchem_gdeq.relaxnet.frames import FramesDataset, equidistant
from fairchem_gdeq.relaxnet.held import reference_of
from tests.fairchem2.relaxnet import paths


def opened(folder, frames, **more):
    return FramesDataset({"src": str(folder), "frames": frames, **more})


def test_frames_are_equidistant_with_both_ends():
    assert equidistant(16, 5) == [0, 4, 8, 11, 15]
    assert equidistant(4, 4) == [0, 1, 2, 3] and equidistant(9, 2) == [0, 8]


def test_frames_come_in_the_order_of_their_steps(tmp_path):
    """Whatever their order in the file; with labels, and as one batch of structures of other sizes."""
    known = paths.silicon_trajectories(3, frames=7)
    paths.write_trajectories(tmp_path / "frames", known)
    dataset = opened(tmp_path / "frames", 4)
    assert len(dataset) == 3
    items = {item.sid[0]: item for item in (dataset[i] for i in range(3))}
    assert items.keys() == known.keys()
    batch = atomicdata_list_to_batch([items[name] for name in known])
    found = reference_of(batch)
    for place, step in enumerate((0, 2, 4, 6)):
        images = [each[step] for each in known.values()]
        expected = np.concatenate([image.positions for image in images])
        np.testing.assert_allclose(found.positions[place], expected, atol=1e-5)
        forces = np.concatenate([image.get_forces() for image in images])
        np.testing.assert_allclose(found.forces[place], forces, atol=1e-5)
        energies = [image.get_potential_energy() for image in images]
        np.testing.assert_allclose(found.energies[place], energies, rtol=1e-6)
    np.testing.assert_allclose(batch.pos, found.positions[0])
    np.testing.assert_allclose(batch.pos_relaxed, found.positions[-1])
    sizes = [len(dataset[i].pos) for i in range(3)]
    assert list(dataset.get_metadata("natoms", [0, 1, 2])) == sizes


def test_an_atom_that_is_wrapped_on_its_way_goes_on(tmp_path):
    known = paths.silicon_trajectories(1)
    plain = [image.positions.copy() for image in known["cell_0"]]
    for image in known["cell_0"][2:]:
        relabelled(image, lambda image: image.positions.__isub__(np.eye(8)[:, 4:5] * image.cell[0]))
    paths.write_trajectories(tmp_path / "frames", known)
    (item,) = opened(tmp_path / "frames", 4)[:]
    np.testing.assert_allclose(item.path_positions.transpose(0, 1), np.array(plain), atol=1e-5)


def test_a_trajectory_too_short_is_named_and_the_rest_goes_on(tmp_path, caplog):
    known = paths.silicon_trajectories(3, frames=5)
    known["cell_1"] = known["cell_1"][:3]
    paths.write_trajectories(tmp_path / "frames", known)
    with pytest.raises(BadRows, match=r"trajectory cell_1: 3 frames, expected at least 4"):
        opened(tmp_path / "frames", 4)
    with caplog.at_level(logging.WARNING):
        dataset = opened(tmp_path / "frames", 4, skip_bad=True)
    assert sorted(item.sid[0] for item in dataset[:]) == ["cell_0", "cell_2"]
    assert "1 of 3 rows are bad and left out" in caplog.text
    assert "trajectory cell_1: 3 frames, expected at least 4 (frames=4)" in caplog.text


def relabelled(image, change):
    """Changed in place, with the labels that it had: ASE's would be of another structure."""
    labels = image.calc.results
    change(image)
    image.calc = SinglePointCalculator(image, **labels)


def spoil_energy(images):
    images[-1].calc.results.pop("energy")


def spoil_forces(images):
    images[-1].calc.results["forces"][0, 0] = np.nan


def spoil_species(images):
    relabelled(images[-1], lambda image: image.symbols.__setitem__(0, "Ge"))


def spoil_cell(images):
    relabelled(images[-1], lambda image: image.cell.__setitem__((0, 0), image.cell[0, 0] + 0.1))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_energy, "step 9: no energy among its labels"),
        (spoil_forces, "step 9: its energy or forces contain NaN"),
        (spoil_species, "step 9: species order differs: atom 0 is Si at the start and Ge"),
        (spoil_cell, "step 9: the cell changes by 0.1 Angstrom"),
    ],
)
def test_frames_that_cannot_be_used_are_named(tmp_path, spoil, reason):
    known = paths.silicon_trajectories(2)
    spoil(known["cell_1"])
    paths.write_trajectories(tmp_path / "frames", known)
    with pytest.raises(BadRows, match=f"trajectory cell_1, {reason}"):
        opened(tmp_path / "frames", 4)


def test_a_frame_of_no_trajectory_is_refused(tmp_path):
    known = paths.silicon_trajectories(1)
    paths.write_trajectories(tmp_path / "frames", {"": known["cell_0"]})
    with pytest.raises(ValueError, match=r"row \d: expected a name \(sid\) of the form NAME_STEP"):
        opened(tmp_path / "frames", 4)
