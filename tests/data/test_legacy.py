"""Legacy OC20/OC22 LMDBs: what is read of them, and how damage and hostility are named."""

import os
import pickle

import numpy as np
import pytest
import torch
from ase.db import connect

from fairchem_gdeq.data import lmdb_file
from fairchem_gdeq.data.is2rs import IS2RSDataset, LegacyDataset, collate
from fairchem_gdeq.data.legacy import LegacySource
from fairchem_gdeq.data.lmdb_file import DamagedFile
from fairchem_gdeq.data.reading import BadRows, read_row
from fairchem_gdeq.data.rows import BadRow, free_atoms
from fairchem_gdeq.data.safe_pickle import RefusedPickle
from fairchem_gdeq.testing import pyg


@pytest.mark.parametrize("pack", [pyg.pyg1, pyg.pyg2])
@pytest.mark.parametrize("oc22", [False, True])
@pytest.mark.parametrize("length", [False, True])
def test_rows_are_the_structures_that_were_stored(tmp_path, pack, oc22, length):
    slabs = pyg.legacy(tmp_path / "data.0000.lmdb", 3, pack, oc22, length)
    source = LegacySource(tmp_path / "data.0000.lmdb")
    assert len(source) == 3
    for i, slab in enumerate(slabs):
        row = read_row(source, i)
        np.testing.assert_allclose(row.positions, slab.positions, atol=1e-6)
        np.testing.assert_allclose(row.cell, slab.cell, atol=1e-6)
        np.testing.assert_allclose(row.info["pos_relaxed"], slab.info["pos_relaxed"], atol=1e-6)
        assert row.symbols.get_chemical_formula() == slab.symbols.get_chemical_formula()
        assert row.pbc.all() and row.info["sid"] == str(100 + i)
        assert (~free_atoms(row)).nonzero()[0].tolist() == slab.constraints[0].index.tolist()
        assert row.get_tags().tolist() == ([0] * len(slab) if oc22 else slab.get_tags().tolist())
        assert row.info["energy_relaxed"] == -0.5 and ("nads" in row.info) == oc22


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    pyg.legacy(tmp_path / "data.0001.lmdb", 2)
    pyg.legacy(tmp_path / "data.0000.lmdb", 12)
    source = LegacySource(tmp_path)
    assert len(source) == 14
    assert [source.read(i).info["sid"] for i in (0, 9, 10, 11, 12, 13)] == [
        *("100", "109", "110", "111"),
        *("100", "101"),
    ]
    assert source.where(13).endswith("data.0001.lmdb, key 1")
    both = LegacySource([tmp_path / "data.0001.lmdb", tmp_path / "data.0000.lmdb"])
    assert both.files == source.files
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.lmdb file"):
        LegacySource(tmp_path / "empty")
    pyg.write(tmp_path / "empty" / "no.lmdb", [])
    with pytest.raises(ValueError, match="empty: no records"):
        LegacySource(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"none.lmdb"):
        LegacySource(tmp_path / "none.lmdb")


def test_items_equal_those_of_the_is2rs_format(tmp_path):
    """The same structures through both formats: every field of the batch is the same."""
    slabs = pyg.legacy(tmp_path / "old.lmdb", 3)
    with connect(tmp_path / "new.aselmdb", type="aselmdb") as database:
        for i, slab in enumerate(slabs):
            database.write(slab, data={"sid": str(100 + i), **slab.info})
    sets = (
        LegacyDataset({"src": str(tmp_path / "old.lmdb")}),
        IS2RSDataset({"src": str(tmp_path / "new.aselmdb")}),
    )
    old, new = (collate([rows[i] for i in range(3)]) for rows in sets)
    assert set(old.keys()) == set(new.keys())
    for key, value in new.to_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(old[key], value, rtol=0, atol=1e-5, msg=key)
        else:
            assert old[key] == value
    assert old.fixed.sum() == 12 and set(old.tags.tolist()) == {0, 1, 2}
    assert sets[0].get_metadata("natoms", [2, 0]) == [13, 13]


def test_a_molecule_like_row_without_optional_keys(tmp_path):
    keys = ("pos", "cell", "atomic_numbers", "pos_relaxed")
    fields = {key: pyg.fields(pyg.slab())[key] for key in keys}
    pyg.write(tmp_path / "few.lmdb", [pyg.pyg1(fields)], length=False)
    row = read_row(LegacySource(tmp_path / "few.lmdb"), 0)
    assert row.info["sid"] == "few_0" and free_atoms(row).all()


def test_test_splits_have_no_targets(tmp_path):
    fields = pyg.fields(pyg.slab())
    del fields["pos_relaxed"]
    pyg.write(tmp_path / "test.lmdb", [pyg.pyg1(fields)])
    with pytest.raises(BadRows, match="no 'pos_relaxed'"):
        LegacyDataset({"src": str(tmp_path / "test.lmdb")})
    item = LegacyDataset({"src": str(tmp_path / "test.lmdb"), "target_key": None})[0]
    assert "pos_relaxed" not in item and item.natoms == 13


def changed(**values):
    """A row with some attributes replaced; None removes."""
    out = pyg.fields(pyg.slab(), sid=42) | values
    return {key: value for key, value in out.items() if value is not None}


BAD = {
    "atom count": (changed(pos_relaxed=torch.zeros(12, 3)), r"pos_relaxed has shape \(12, 3\)"),
    "natoms": (changed(natoms=12), "13 atoms in pos but 12 in natoms"),
    "tags": (changed(tags=torch.zeros(3)), "13 atoms in pos but 3 in tags"),
    "nan": (changed(pos=torch.full((13, 3), torch.nan)), "start positions contain NaN"),
    "infinity": (changed(pos_relaxed=torch.full((13, 3), torch.inf)), "pos_relaxed positions"),
    "target": (changed(pos_relaxed=None), "no 'pos_relaxed'"),
    "volume": (changed(cell=torch.zeros(1, 3, 3)), "a volume of 0 "),
    "cell": (changed(cell=torch.zeros(1, 3)), "cell has shape"),
    "elements": (changed(atomic_numbers=torch.full((13,), 0.5)), "not whole numbers"),
    "unknown": (changed(atomic_numbers=torch.full((13,), 200.0)), "atomic numbers from 200"),
    "no pos": (changed(pos=None), r"no 'pos' in the Data object \(it has: .*atomic_numbers"),
    "text": (changed(pos="far"), "pos holds no numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    fields, message = BAD[name]
    pyg.write(tmp_path / "data.lmdb", [pyg.pyg1(pyg.fields(pyg.slab())), pyg.pyg1(fields)])
    with pytest.raises(BadRow, match=message) as error:
        read_row(LegacySource(tmp_path / "data.lmdb"), 1)
    assert str(error.value).startswith(f"{tmp_path / 'data.lmdb'}, key 1")
    if name != "no pos":
        assert "structure 42" in str(error.value)


def test_missing_and_unreadable_records_are_named(tmp_path):
    good = pyg.pyg1(pyg.fields(pyg.slab()))
    records = [good, None, good[: len(good) // 2], b"", pickle.dumps([1, 2]), good]
    pyg.write(tmp_path / "data.lmdb", records)
    source = LegacySource(tmp_path / "data.lmdb")
    for key, message in {
        1: "no record under this key",
        2: "cannot be read .*truncated",
        3: "cannot be read .*EOFError",
        4: "expected a PyG Data, found a list",
    }.items():
        with pytest.raises(BadRow, match=f"data.lmdb, key {key}.*{message}"):
            read_row(source, key)
    with pytest.raises(BadRows, match="4 of 6 rows") as error:
        LegacyDataset({"src": str(tmp_path / "data.lmdb")})
    assert [f"key {key}" in str(error.value) for key in range(6)] == [False, *[True] * 4, False]


def test_without_length_the_keys_that_are_there_count(tmp_path):
    good = pyg.pyg1(pyg.fields(pyg.slab()))
    pyg.write(tmp_path / "data.lmdb", [good, None, good], length=False)
    source = LegacySource(tmp_path / "data.lmdb")
    assert [source.where(i)[-5:] for i in range(len(source))] == ["key 0", "key 2"]


def test_damaged_page_is_a_bad_row_and_a_short_file_an_error(tmp_path):
    path = tmp_path / "data.lmdb"
    records = [pyg.pyg1(pyg.fields(pyg.slab(i), sid=i)) for i in range(4)]
    pyg.write(path, records, length=False)
    whole = path.read_bytes()
    # The page behind the start of a record that fills pages of its own: its header and beginning.
    start = whole.index(records[2][:64])
    page = start - start % 4096
    path.write_bytes(whole[:page] + b"\xff" * 200 + whole[page + 200 :])
    bad = []
    source = LegacySource(path)
    for i in range(len(source)):
        try:
            read_row(source, i)
        except BadRow as error:
            bad.append(str(error))
    assert len(bad) >= 1 and all("data.lmdb, key" in each for each in bad)
    short = tmp_path / "short.lmdb"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFile, match=r"short.lmdb: cut short: \d+ bytes of \d+"):
        LegacySource(short)
    (tmp_path / "text.lmdb").write_text("no database" * 1000)
    with pytest.raises(DamagedFile, match=r"text.lmdb: not a readable LMDB"):
        LegacySource(tmp_path / "text.lmdb")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_ran",)


def test_hostile_files_are_refused_by_name_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = pyg.pyg1(pyg.fields(pyg.slab()))
    pyg.write(tmp_path / "row.lmdb", [good, pyg.pyg1(changed(sid=Hostile()))])
    pyg.write(tmp_path / "length.lmdb", [good], length=False)
    env = lmdb_file.lmdb.open("length.lmdb", subdir=False, map_size=2**28)
    with env.begin(write=True) as transaction:
        transaction.put(b"length", pickle.dumps(Hostile()))
    env.close()
    with pytest.raises(BadRows, match=r"row.lmdb, key 1: refused, .*posix.system"):
        LegacyDataset({"src": "row.lmdb"})
    assert len(LegacyDataset({"src": "row.lmdb", "skip_bad": True})) == 1
    with pytest.raises(RefusedPickle, match=r"length.lmdb, key length: refused, .*posix.system"):
        LegacyDataset({"src": "length.lmdb", "skip_bad": True})
    assert not (tmp_path / "hostile_ran").exists()


def test_handles_are_opened_anew_in_a_forked_process(tmp_path):
    pyg.legacy(tmp_path / "data.lmdb", 2)
    source = LegacySource(tmp_path / "data.lmdb")
    source.read(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if source.read(1).info["sid"] == "101" else 1)
    assert os.waitpid(child, 0)[1] == 0
