"""Trajectories, and what the three formats have in common: the list of bad rows, skipping, checks."""

import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from fairchem.core.common.registry import registry
from fairchem.core.datasets.base_dataset import create_dataset
from fairchem.core.datasets.samplers.max_atom_distributed_sampler import (
    MaxAtomDistributedBatchSampler,
)
from omegaconf import OmegaConf

import fairchem_gdeq.fairchem2  # noqa: F401  registers the formats
from fairchem_gdeq.data.convert import convert
from fairchem_gdeq.data.is2rs import IS2RSDataset, LegacyDataset, TrajectoryDataset, collate
from fairchem_gdeq.data.lmdb_file import DamagedFile
from fairchem_gdeq.data.reading import BadRows
from fairchem_gdeq.data.rows import BadRow, check
from fairchem_gdeq.data.trajectories import TrajectorySource
from fairchem_gdeq.fairchem2.loaders import open_split
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import small


def relaxation(index=0, frames=3):
    """Frames from a slab's start to its target, with energies and forces."""
    slab = pyg.slab(index)
    move = slab.info.pop("pos_relaxed") - slab.positions
    out = []
    for step in range(frames):
        atoms = slab.copy()
        atoms.positions = slab.positions + move * step / max(frames - 1, 1)
        atoms.calc = SinglePointCalculator(atoms, energy=-step, forces=np.ones_like(move))
        out.append(atoms)
    return out


def trajectories(folder):
    """Three relaxations in different formats and depths."""
    (folder / "a").mkdir(parents=True)
    for i, name in enumerate(("a/one.traj", "a/two.extxyz", "three.traj")):
        write(folder / name, relaxation(i))
    return folder


def test_first_and_last_frames(tmp_path):
    data = TrajectoryDataset({"src": str(trajectories(tmp_path / "t"))})
    batch = collate([data[i] for i in range(3)])
    assert batch.sid == ["a/one", "a/two", "three"]
    for i, key in enumerate((0, 1, 2)):
        atoms = data.get_atoms(i)
        np.testing.assert_allclose(atoms.positions, pyg.slab(key).positions, atol=1e-6)
        expected = pyg.slab(key).info["pos_relaxed"]
        np.testing.assert_allclose(atoms.info["pos_relaxed"], expected, atol=1e-6)
    assert batch.fixed.sum() == 12
    assert "forces" not in batch and "energy" not in batch
    assert data.get_metadata("natoms", 1) == 13
    picked = TrajectoryDataset({"src": str(tmp_path / "t"), "pattern": "a/*.traj"})
    assert [picked[i].sid for i in range(len(picked))] == [["a/one"]]
    with pytest.raises(FileNotFoundError, match=r"no file matches '\*.cif'"):
        TrajectorySource(tmp_path / "t", pattern="*.cif")


def test_several_folders_are_one_data_set(tmp_path):
    folders = [str(trajectories(tmp_path / name)) for name in ("t", "u", "v")]
    data = TrajectoryDataset({"src": [folders[0], folders[1:]]})
    assert [data[i].sid for i in range(len(data))] == 3 * [["a/one"], ["a/two"], ["three"]]
    assert data.source.where(5).startswith(folders[1])


def other_order(frames):
    frames[-1] = frames[-1][[12, *range(12)]]


def other_cell(frames):
    frames[-1].cell[0, 0] += 0.1


BAD = {
    "order": (other_order, "species order differs: atom 0 is Pt at the start and N in the target"),
    "count": (lambda frames: frames[-1].__delitem__(5), "13 atoms at the start, 12 in the target"),
    "cell": (other_cell, "cell changes by 0.1 Angstrom"),
    "single": (lambda frames: frames.__delitem__(slice(1, None)), "one frame only"),
    "volume": (lambda frames: [f.set_cell([1, 1, 0]) for f in frames], "a volume of 0 "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_trajectories_are_named(tmp_path, name):
    change, message = BAD[name]
    frames = relaxation()
    change(frames)
    write(tmp_path / "bad.traj", frames)
    with pytest.raises(BadRows, match=message) as error:
        TrajectoryDataset({"src": str(tmp_path)})
    assert "bad.traj" in str(error.value)


def make(kind, folder):
    """Good, bad, good, bad in each format; the bad have NaN, and no target."""
    folder.mkdir()
    slabs = [pyg.slab(i) for i in range(4)]
    slabs[1].positions[3] = np.nan
    if kind == "is2rs_lmdb":
        rows = [pyg.fields(slab, sid=i) for i, slab in enumerate(slabs)]
        del rows[3]["pos_relaxed"]
        pyg.write(folder / "data.lmdb", [pyg.pyg1(row) for row in rows])
    elif kind == "is2rs":
        del slabs[3].info["pos_relaxed"]
        with connect(folder / "data.aselmdb", type="aselmdb") as database:
            for i, slab in enumerate(slabs):
                database.write(slab, data={"sid": str(i), **slab.info})
        np.savez(folder / "metadata.npz", natoms=np.full(4, 13), extra=np.arange(4))
    else:
        for i in range(4):
            frames = relaxation(i, 1 if i == 3 else 2)
            if i == 1:
                frames[0].positions[3] = np.nan
            write(folder / f"{i}.traj", frames)


@pytest.mark.parametrize("kind", ["is2rs", "is2rs_lmdb", "is2rs_trajectories"])
def test_bad_rows_stop_with_the_list_or_are_skipped_and_counted(tmp_path, kind, caplog):
    make(kind, tmp_path / "d")
    cls = registry.get_dataset_class(kind)
    config = {"src": str(tmp_path / "d"), "format": kind}
    with pytest.raises(BadRows, match="2 of 4 rows cannot be used") as error:
        cls(config)
    assert "NaN" in str(error.value) and "skip_bad: true" in str(error.value)
    assert len(error.value.bad) == 2 and all(str(tmp_path) in bad.where for bad in error.value.bad)
    with caplog.at_level(logging.WARNING):
        data = create_dataset({**config, "skip_bad": True, "no_shuffle": True}, "train")
    assert "2 of 4 rows are bad and left out" in caplog.text
    assert [data[i].sid for i in range(2)] == [["0"], ["2"]]
    rows = cls({**config, "skip_bad": True})
    sampler = MaxAtomDistributedBatchSampler(rows, 13, 1, 0, seed=0)
    assert sorted(map(list, sampler)) == [[0], [1]]
    if kind == "is2rs":
        assert rows.get_metadata("extra", [0, 1]) == [0, 2]


def test_all_rows_bad_is_an_error_also_when_skipping(tmp_path):
    write(tmp_path / "bad.traj", relaxation(frames=1))
    with pytest.raises(BadRows, match="1 of 1"):
        TrajectoryDataset({"src": str(tmp_path), "skip_bad": True})


def test_damaged_ase_databases(tmp_path):
    """A record of noise is a bad row; a file cut short is an error and no crash."""
    small.write_is2rs(tmp_path / "a", small.silicon(3))
    path = tmp_path / "a" / "data.aselmdb"
    import lmdb

    env = lmdb.open(str(path), subdir=False, map_size=2**30)
    with env.begin(write=True) as transaction:
        transaction.put(b"2", b"noise")
    env.close()
    with pytest.raises(BadRows, match=r"data.aselmdb, row 2: cannot be read") as error:
        IS2RSDataset({"src": str(tmp_path / "a")})
    assert len(error.value.bad) == 1
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(DamagedFile, match=r"data.aselmdb: cut short"):
        IS2RSDataset({"src": str(tmp_path / "a")})


def test_molecules_need_no_cell_and_rows_must_be_whole():
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    check(molecule, "here", None)
    for change, message in (
        ({"masses": [12.0]}, r"masses has shape \(1,\), expected \(2,\)"),
        ({"masses": [12.0, -1.0]}, "positive, finite masses"),
        ({"free": [True]}, "free has shape"),
    ):
        molecule.info = change
        with pytest.raises(BadRow, match=message):
            check(molecule, "here", None)
    with pytest.raises(BadRow, match="no atoms"):
        check(Atoms(), "here", None)
    slab = Atoms("C", cell=[3, 3, 0], pbc=[True, True, False])
    with pytest.raises(BadRow, match="a volume of 0 "):
        check(slab, "here", None)


def same_names(folder, form):
    """Five slabs called 7, 8, 7, 9, 7 in a format, and what the data set is opened with."""
    sids = [7, 8, 7, 9, 7]
    if form == "is2rs_lmdb":
        rows = [pyg.pyg1(pyg.fields(pyg.slab(i), sid)) for i, sid in enumerate(sids)]
        pyg.write(folder / "old.lmdb", rows)
        return LegacyDataset, {"src": str(folder / "old.lmdb")}
    if form == "is2rs_trajectories":  # a name is the path without the suffix
        for i, (name, suffix) in enumerate(zip("78797", "abcde", strict=True)):
            write(folder / f"{name}.{suffix}", relaxation(i), format="traj")
        return TrajectoryDataset, {"src": str(folder)}
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for i, sid in enumerate(sids):
            atoms = pyg.slab(i)
            target = atoms.info.pop("pos_relaxed")
            database.write(atoms, data={"sid": str(sid), "pos_relaxed": target})
    if form == "converted":
        convert(folder / "data.aselmdb", folder / "new")
        return IS2RSDataset, {"src": str(folder / "new")}
    return IS2RSDataset, {"src": str(folder)}


@pytest.mark.parametrize("form", ["is2rs", "converted", "is2rs_lmdb", "is2rs_trajectories"])
def test_rows_of_one_name_are_named_and_have_their_own_numbers(tmp_path, caplog, form):
    kind, config = same_names(tmp_path, form)
    data = kind(config)
    assert "3 rows have a name (sid) that others have too, 1 such names: 7 (3 rows)" in caplog.text
    batch = collate([data[i] for i in range(5)])
    assert batch.row.tolist() == [0, 1, 2, 3, 4] and batch.row.dtype == torch.int64
    assert sorted(batch.sid) == ["7", "7", "7", "8", "9"]
    assert [batch.get_example(i).row.tolist() for i in (4, 1)] == [[4], [1]]
    assert [item.row.item() for item in data[1:3]] == [1, 2]


def test_names_of_their_own_are_nothing_to_say(tmp_path, caplog):
    TrajectoryDataset({"src": str(trajectories(tmp_path / "t"))})
    assert "name" not in caplog.text


def test_numbers_of_rows_left_out_are_not_given_again(tmp_path):
    """The number is the place in the file, so that it stays when a bad row is mended."""
    rows = [pyg.fields(pyg.slab(i), 7 + i) for i in range(3)]
    rows[1]["pos_relaxed"] = rows[1]["pos_relaxed"][:-1]
    pyg.write(tmp_path / "old.lmdb", [pyg.pyg1(row) for row in rows])
    data = LegacyDataset({"src": str(tmp_path / "old.lmdb"), "skip_bad": True})
    assert [data[i].row.item() for i in range(2)] == [0, 2]


def test_numbers_are_unique_over_joined_data_sets(tmp_path):
    pyg.legacy(tmp_path / "a.lmdb", 3)
    pyg.legacy(tmp_path / "b.lmdb", 4)
    configs = {
        name: {"splits": {"train": {"src": str(tmp_path / f"{name}.lmdb")}}, "format": "is2rs_lmdb"}
        for name in "ab"
    }
    ratios = {"a.train": 1.0, "b.train": 2.0}  # each row of the second is given twice
    sampling = {"sampling": {"type": "explicit", "ratios": ratios}}
    joined = open_split(OmegaConf.create(configs), OmegaConf.create(sampling))
    items = [joined[i] for i in range(len(joined))]
    assert sorted(item.row.item() for item in items) == sorted([0, 1, 2, *(2 * [3, 4, 5, 6])])
    names = {item.row.item(): (item.dataset_name, item.sid[0]) for item in items}
    assert len(set(names.values())) == 7 and all(
        names[item.row.item()] == (item.dataset_name, item.sid[0]) for item in items
    )


@pytest.mark.parametrize("ratio", [64, 1.5, -0.5, float("nan")])
def test_a_number_of_structures_is_not_taken_for_a_part(tmp_path, ratio):
    pyg.legacy(tmp_path / "a.lmdb", 3)
    split = {"train": {"src": str(tmp_path / "a.lmdb")}}
    configs = {"is2rs": {"splits": split, "format": "is2rs_lmdb"}}
    sampling = {"sampling": {"type": "explicit", "ratios": {"is2rs.train": ratio}}}
    with pytest.raises(ValueError, match=f"train_structures={ratio}: .*from 0 to 1"):
        open_split(OmegaConf.create(configs), OmegaConf.create(sampling))
