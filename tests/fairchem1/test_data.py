"""The LMDBs of OC20 and OC22 in fairchem 1: the same rows as its own reader gives, but checked."""

import pickle

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from torch.utils.data import DataLoader

import fairchem_gdeq.fairchem1  # noqa: F401  registers the formats
from fairchem_gdeq.data.reading import BadRows
from fairchem_gdeq.fairchem1.batches import plain, select_structures
from fairchem_gdeq.fairchem1.splits import rows_of
from fairchem_gdeq.testing import pyg


@pytest.mark.parametrize("oc22", [False, True])
def test_rows_are_those_of_fairchems_reader(tmp_path, oc22):
    path = tmp_path / "data.lmdb"
    slabs = pyg.legacy(path, 3, pyg.pyg2, oc22)
    ours = create_dataset({"src": str(path), "format": "is2rs_lmdb", "no_shuffle": True}, "train")
    assert ours.get_metadata("natoms", 0) == len(slabs[0])
    batch = data_list_collater([ours[i] for i in range(3)], otf_graph=True)
    stored = [pyg.fields(atoms, 100 + i, oc22) for i, atoms in enumerate(slabs)]
    for key in ("pos", "cell", "pos_relaxed", "fixed"):
        expected = torch.cat([row[key] for row in stored])
        torch.testing.assert_close(batch[key].to(expected), expected)
    numbers = torch.cat([row["atomic_numbers"] for row in stored])
    assert batch.atomic_numbers.tolist() == numbers.tolist()
    assert batch.sid == ["100", "101", "102"] and batch.pbc.shape == (3, 3)
    if oc22:  # it has no tags: every atom is of the surface, as fairchem's apply_one_tags says
        assert (batch.tags == 1).all()


def test_positions_stay_where_the_file_has_them(tmp_path):
    """fairchem wraps them into the cell, and its MAE takes no minimum image."""
    row = pyg.fields(pyg.slab(0))
    row["pos"][0] += row["cell"][0, 0]
    pyg.write(tmp_path / "data.lmdb", [pyg.pyg1(row)])
    dataset = registry.get_dataset_class("is2rs_lmdb")({"src": str(tmp_path / "data.lmdb")})
    torch.testing.assert_close(dataset[0].pos, row["pos"])


def test_bad_rows_stop_with_the_list_or_are_left_out(tmp_path):
    rows = [pyg.fields(pyg.slab(i), 7 + i) for i in range(3)]
    rows[1]["pos_relaxed"] = rows[1]["pos_relaxed"][:-1]
    path = tmp_path / "data.lmdb"
    pyg.write(path, [pyg.pyg1(row) for row in rows])
    reader = registry.get_dataset_class("is2rs_lmdb")
    with pytest.raises(BadRows, match=r"1 of 3 rows.*key 1, structure 8.*shape"):
        reader({"src": str(path)})
    dataset = reader({"src": str(path), "skip_bad": True})
    assert [dataset[i].sid for i in range(len(dataset))] == ["7", "9"]


def test_a_pickle_that_asks_for_more_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    path = tmp_path / "data.lmdb"
    pyg.write(path, [pyg.pyg1(pyg.fields(pyg.slab(0))), pickle.dumps(Evil())])
    with pytest.raises(BadRows, match="key 1"):
        registry.get_dataset_class("is2rs_lmdb")({"src": str(path)})


def test_rows_of_a_loader(tmp_path):
    pyg.legacy(tmp_path / "data.lmdb", 3)
    dataset = registry.get_dataset_class("is2rs_lmdb")({"src": str(tmp_path / "data.lmdb")})
    loader = DataLoader(
        dataset, batch_size=2, collate_fn=lambda rows: data_list_collater(rows, otf_graph=True)
    )
    rows = list(rows_of(loader))
    assert [row.sid for row in rows] == [["100"], ["101"], ["102"]]
    for row, expected in zip(rows, dataset, strict=True):
        assert row.num_graphs == 1 and torch.equal(row.pos, expected.pos)


def test_a_batch_of_no_structures(tmp_path):
    """What is selected where nothing has converged."""
    pyg.legacy(tmp_path / "data.lmdb", 2)
    dataset = registry.get_dataset_class("is2rs_lmdb")({"src": str(tmp_path / "data.lmdb")})
    batch = plain(data_list_collater([dataset[0], dataset[1]], otf_graph=True))
    none = select_structures(batch, torch.tensor([False, False]))
    assert none.pos.shape == (0, 3) and none.cell.shape == (0, 3, 3) and len(none.natoms) == 0
    assert select_structures(none, torch.zeros(0, dtype=torch.bool)).pos.shape == (0, 3)
