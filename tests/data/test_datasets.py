"""IS2RS rows, the ADAPT .pt format and turned frames: what is read, and what is refused and how."""

import os

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.geometry import find_mic
from torch.utils.data import DataLoader

from fairchem_gdeq.data.adapt_pt import convert, read_adapt_file, split_trajectories
from fairchem_gdeq.data.is2rs import IS2RSDataset, collate
from fairchem_gdeq.data.symmetry import SiteSymmetricDataset, tetrahedral_group
from fairchem_gdeq.testing.fairchem2 import small


def test_is2rs_rows(tmp_path):
    structures = small.silicon(3, fixed=(1,))
    small.write_is2rs(tmp_path / "a", structures)
    data = IS2RSDataset({"src": str(tmp_path / "a")})
    batch = collate([data[i] for i in range(3)])
    assert batch.natoms.tolist() == [8, 7, 6]
    assert batch.sid == ["row0", "row1", "row2"]
    assert batch.fixed.sum() == 3 and batch.fixed[1] == 1
    assert batch.pos_relaxed.shape == batch.pos.shape
    assert batch.mass[3] == pytest.approx(72.63, abs=0.01)


def test_processes_that_are_not_forked_read_the_same_rows(tmp_path):
    """As those of a run of several ranks are started."""
    small.write_is2rs(tmp_path / "a", small.silicon(3))
    data = IS2RSDataset({"src": str(tmp_path / "a")})
    loader = DataLoader(
        data, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="spawn"
    )
    for batch, rows in zip(loader, ([0, 1], [2]), strict=True):
        assert torch.equal(batch.pos, torch.cat([data[i].pos for i in rows]))


def test_atoms_outside_the_cell_stay_where_they_are(tmp_path):
    """Start and target are compared without a minimum image by fairchem's MAE."""
    structures = small.silicon(2)
    for atoms in structures:
        atoms.positions += [5.0, -7.0, 20.0]
    small.write_is2rs(tmp_path / "a", structures)
    data = IS2RSDataset({"src": str(tmp_path / "a")})
    for i, atoms in enumerate(structures):
        np.testing.assert_allclose(data[i].pos.numpy(), atoms.positions, atol=1e-5)
        assert (data[i].pos - data[i].pos_relaxed).abs().max() < 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "no 'pos_relaxed'"),
        ({"pos_relaxed": np.zeros((3, 3))}, r"shape \(3, 3\), expected \(8, 3\)"),
        ({"pos_relaxed": np.full((8, 3), np.nan)}, "NaN"),
    ],
)
def test_bad_rows_name_file_and_structure(tmp_path, data, message):
    with connect(tmp_path / "bad.aselmdb", type="aselmdb") as database:
        database.write(small.silicon(1)[0], data={"sid": "the-one", **data})
    with pytest.raises(ValueError, match=message) as error:
        IS2RSDataset({"src": str(tmp_path / "bad.aselmdb")})
    assert "bad.aselmdb" in str(error.value) and "the-one" in str(error.value)


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*Ask Zenodo"):
        IS2RSDataset({"src": str(tmp_path / "nowhere"), "hint": "Ask Zenodo."})


CELL = 10.9


def adapt_file(path, change=lambda stored: stored):
    """Two relaxations in the ADAPT format: 20 Si with a Ni, then with a Br; the second wraps."""
    rng = np.random.default_rng(0)
    stored = {"X": [], "Y": []}
    for group, period in ((10, 4), (17, 4)):
        sites = rng.uniform(0, CELL, (20, 3))
        sites[5, 0] = CELL - 0.05
        for step in range(4):
            x = np.zeros((20, 13))
            x[:, :3] = (sites + 0.1 * step) % CELL
            x[:, 3:5] = (14, 3)
            x[7, 3:5] = (group, period)
            x[:, 12] = 1.0 + step
            stored["X"].append(torch.tensor(x, dtype=torch.float32))
            stored["Y"].append(torch.tensor(rng.normal(size=(20, 3)), dtype=torch.float32))
    torch.save(change(stored), path)
    return stored


def test_adapt_file_is_split_unwrapped_and_converted(tmp_path):
    stored = adapt_file(tmp_path / "a.pt")
    frames = read_adapt_file(tmp_path / "a.pt")
    assert [f.numbers[7] for f in frames] == [28] * 4 + [35] * 4
    relaxations = split_trajectories(frames, CELL)
    assert [len(r) for r in relaxations] == [4, 4]
    moved = relaxations[0][-1].positions - relaxations[0][0].positions
    np.testing.assert_allclose(moved, 0.3, atol=1e-5)
    assert convert(tmp_path / "a.pt", tmp_path / "out", "train", CELL) == (2, 8)
    rows = IS2RSDataset({"src": str(tmp_path / "out" / "train")})
    assert len(rows) == 2
    move = find_mic((rows[1].pos_relaxed - rows[1].pos).numpy(), rows[1].cell[0].numpy())[0]
    np.testing.assert_allclose(move, 0.3, atol=1e-4)
    from fairchem.core.datasets.ase_datasets import AseDBDataset

    force_rows = AseDBDataset({"src": str(tmp_path / "out" / "train_frames")})
    torch.testing.assert_close(force_rows[5].forces, stored["Y"][5])


def test_same_composition_far_apart_is_another_relaxation(tmp_path):
    def same_elements(stored):
        for x in stored["X"]:
            x[7, 3:5] = torch.tensor([14.0, 3.0])
        return stored

    adapt_file(tmp_path / "a.pt", same_elements)
    assert [len(r) for r in split_trajectories(read_adapt_file(tmp_path / "a.pt"), CELL)] == [4, 4]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_ran",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["X"], "dict with the lists X and Y"),
        (lambda s: {"X": s["X"], "Y": s["Y"][:-1]}, "8 entries in X and 7 in Y"),
        (lambda s: {"X": [x[:, :12] for x in s["X"]], "Y": s["Y"]}, r"X \[n, 13\]"),
        (lambda s: {"X": [x * 0 for x in s["X"]], "Y": s["Y"]}, "group 0 and period 0"),
        (lambda s: {"X": [x / 0 for x in s["X"]], "Y": s["Y"]}, "NaN or infinity"),
        (lambda s: {"X": Hostile(), "Y": s["Y"]}, "not a file of plain tensors"),
    ],
)
def test_malformed_and_hostile_files_are_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    adapt_file(tmp_path / "a.pt", change)
    with pytest.raises(ValueError, match=message) as error:
        read_adapt_file(tmp_path / "a.pt")
    assert "a.pt" in str(error.value)
    assert not (tmp_path / "hostile_ran").exists()


def test_missing_adapt_file_names_zenodo(tmp_path):
    with pytest.raises(FileNotFoundError, match="17411327"):
        read_adapt_file(tmp_path / "none.pt")


def test_turned_frames_keep_the_crystal_and_turn_the_forces(tmp_path):
    group = tetrahedral_group()
    assert len({g.tobytes() for g in group}) == 24
    assert all(np.allclose(g @ g.T, np.eye(3)) for g in group)
    atoms = small.silicon(1)[0]
    atoms.calc = SinglePointCalculator(atoms, forces=np.random.default_rng(0).normal(size=(8, 3)))
    folder = tmp_path / "f"
    folder.mkdir()
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        database.write(atoms)
    np.savez(folder / "metadata.npz", natoms=np.array([8]))
    site = [0.683] * 3
    data = SiteSymmetricDataset({"src": str(folder), "site": site})
    assert len(data) == 24 and data.get_metadata("natoms", 23) == 8
    host = small.silicon(1)[0]
    host.positions = small.bulk("Si", "diamond", a=5.463, cubic=True).positions + 0.683
    bonds = atoms.get_all_distances(mic=True)
    for k in range(24):
        turned = data.get_atoms(k)
        np.testing.assert_allclose(turned.get_all_distances(mic=True), bonds, atol=1e-9)
        np.testing.assert_allclose(turned.get_forces(), atoms.get_forces() @ group[k].T, atol=1e-12)
        gap = turned.positions[:, None] - host.positions[None]
        _, distance = find_mic(gap.reshape(-1, 3), atoms.cell)
        assert distance.reshape(8, 8).min(1).max() < 0.5, "an atom is near no site of the crystal"
