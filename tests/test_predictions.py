"""What predictions of a split are on disk."""

import ase.io
import numpy as np
from ase import Atoms

from fairchem_gdeq.predictions import write


def relaxed(sid, symbols, shift=0.0):
    atoms = Atoms(
        symbols, positions=np.arange(3 * len(symbols), dtype=float).reshape(-1, 3) + shift
    )
    atoms.info["sid"] = sid
    return atoms


def test_repeats_are_written_once_and_shared_names_are_said(tmp_path, caplog):
    again = relaxed("a", ["Si"], 1e-3)  # a sampler's padding
    write(tmp_path, "test", [relaxed("a", ["Si"]), relaxed("b", ["Si", "O"]), again])
    assert [a.info["sid"] for a in ase.io.read(tmp_path / "test.extxyz", ":")] == ["a", "b"]
    assert not caplog.records

    moved, other = relaxed("a", ["Si"], 1.0), relaxed("b", ["O"])
    write(tmp_path, "test", [relaxed("a", ["Si"]), relaxed("b", ["Si", "O"]), moved, other])
    assert "2 names (sid) of test" in caplog.text and "a, b" in caplog.text
    assert np.load(tmp_path / "test.npz")["ids"].tolist() == ["a", "b"]
