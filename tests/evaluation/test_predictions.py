"""What predictions of a split are on disk."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import example, given
from hypothesis import strategies as st

from fairchem_gdeq.data.names import write_extxyz, wrong_name
from fairchem_gdeq.evaluation.predictions import Journal, each_row_once, write
from fairchem_gdeq.evaluation.reference import ReferenceFile
from fairchem_gdeq.evaluation.task import Label


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


# What ASE's reader takes for something else, or stumbles over, and anything at all.
HARD = [
    *("007", "1e5", "1_000", "nan", "T", "true", "1 2 3", "T F", "1,2", "9" * 5000, "\u0661\u0662"),
    *("=", "a=", "=b", "a=b", "a = b", 'b "c" =d', "'", '"', '"a"', "it's", "{", "}", "[1]", "]["),
    *("\\", "a\\", "C:\\new", '\\"', "_JSON x", "_JSON [1]", "_JSON", " a", "a ", "#", ",", "é"),
]
NAMES = (
    st.sampled_from(HARD) | st.text() | st.text("ab 0=\"'\\{}[],_JSON.T") | st.integers().map(str)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predictions")


@given(names=st.lists(NAMES.filter(lambda name: wrong_name("sid", name) is None), min_size=1))
@example(names=HARD)
def test_every_name_that_a_row_may_have_is_read_back(folder, names):
    """By ASE from the structures, each beside its row, and from the file for the leaderboard."""
    names = list(dict.fromkeys(names))
    write(folder, "test", [relaxed(name, row, ["Si"]) for row, name in enumerate(names)])
    found = ase.io.read(folder / "test.extxyz", ":")
    assert [str(atoms.info["sid"]) for atoms in found] == names
    assert [atoms.info["row"] for atoms in found] == list(range(len(names)))
    assert sorted(np.load(folder / "test.npz")["ids"].tolist()) == sorted(names)
    frames = ReferenceFile(folder / "test.extxyz")
    assert all(frames.frame(Label(n, i), [14]).info["row"] == i for i, n in enumerate(names))


def test_plain_names_are_written_plainly_and_structures_stay_as_they_are(tmp_path):
    images = [relaxed("slab 17", 0, ["Si"]), relaxed("007", 1, ["Si"])]
    images[1].calc = SinglePointCalculator(images[1], energy=1.0, forces=np.ones((1, 3)))
    write_extxyz(tmp_path / "out.extxyz", images)
    text = (tmp_path / "out.extxyz").read_text()
    assert 'sid="slab 17" row=0' in text and "_JSON" not in text.splitlines()[1]
    assert images[1].info == {"sid": "007", "row": 1}
    again = ase.io.read(tmp_path / "out.extxyz")
    assert again.info["sid"] == "007" and again.get_potential_energy() == 1.0


def test_journals_of_a_split_are_not_those_of_another_that_begins_like_it(tmp_path):
    """A split has a name of its own, which another one may go on from."""
    names = ("ood", "ood.v2", "o[a-z]d")
    journals = {name: Journal(tmp_path, name, "1a", 0) for name in names}
    old = Journal(tmp_path, "ood", "2b", 1)
    for name, journal in [*journals.items(), ("old", old)]:
        journal.append(name, Atoms("H", info={"failed": False}))
    assert list(journals["o[a-z]d"].read()) == ["o[a-z]d"]
    journals["ood"].remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "o[a-z]d.1a.0.jsonl",
        "ood.v2.1a.0.jsonl",
    ]
