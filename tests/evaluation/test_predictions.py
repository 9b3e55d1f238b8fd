"""What predictions of a split are on disk."""

import ase.io
import numpy as np
from ase import Atoms

from fairchem_gdeq.evaluation.predictions import each_row_once, write


def relaxed(sid, row, symbols, shift=0.0):
    atoms = Atoms(
        symbols, positions=np.arange(3 * len(symbols), dtype=float).reshape(-1, 3) + shift
    )
    atoms.info |= {"sid": sid, "row": row}
    return atoms


def test_repeats_of_a_row_are_written_once_and_rows_of_one_name_each(tmp_path, caplog):
    images = [relaxed("b", 0, ["Si", "O"]), relaxed("a", 1, ["Si"]), relaxed("a", 1, ["Si"], 1e-3)]
    write(tmp_path, "test", each_row_once(images))
    assert [a.info["sid"] for a in ase.io.read(tmp_path / "test.extxyz", ":")] == ["a", "b"]
    assert np.load(tmp_path / "test.npz")["ids"].tolist() == ["a", "b"]
    assert not caplog.records

    write(tmp_path, "test", each_row_once([*images, relaxed("b", 2, ["O"])]))
    found = [(a.info["sid"], a.info["row"]) for a in ase.io.read(tmp_path / "test.extxyz", ":")]
    assert found == [("a", 1), ("b", 0), ("b", 2)]
    assert "1 names stand for several: b" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["test.extxyz"]
