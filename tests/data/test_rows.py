"""What a row may hold: its masses, constraints, numbers and names."""

import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    FixSymmetry,
    Hookean,
)
from ase.db import connect

from fairchem_gdeq.data.convert import convert, main
from fairchem_gdeq.data.is2rs import IS2RSDataset, TrajectoryDataset
from fairchem_gdeq.data.reading import BadRows, read_row
from fairchem_gdeq.data.rows import HEAVIEST, LIGHTEST, BadRow, check, check_names, free_atoms
from fairchem_gdeq.data.sources import open_source
from fairchem_gdeq.explore.starts import open_starts
from fairchem_gdeq.relax.loss import delta_q, free_displacement
from fairchem_gdeq.relax.structures import Structures
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import small


def structure(**info):
    (atoms,) = small.silicon(1)
    atoms.info = {"sid": "one", "pos_relaxed": atoms.positions + 0.1} | info
    return atoms


class Given:
    """A source of structures that are there already."""

    target_key = "pos_relaxed"

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def where(self, index):
        return f"rows.aselmdb, row {index + 1}"

    def read(self, index):
        return self.rows[index]


def refusal(atoms):
    """What is said of a row, on one line."""
    with pytest.raises(BadRow) as error:
        read_row(Given(atoms), 0)
    said = str(error.value)
    assert said.startswith("rows.aselmdb, row 1") and said.isprintable()
    return said


def one_of(value, others=28.0, dtype=float):
    found = np.full(8, others, dtype=dtype)
    found[3] = value
    return found


# ---- masses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [np.inf, np.nan, 1e300, 1e7, 0.0, -1.0, 1e-30])
def test_a_mass_that_is_none_is_refused(mass):
    by_structure = structure()
    by_structure.set_masses(one_of(mass))
    rows = [structure(masses=one_of(mass))]
    if not np.isnan(mass):  # which ASE takes for the standard mass
        rows.append(by_structure)
    for row in rows:
        said = refusal(row)
        assert f"atom 3 has a mass of {mass:.3g} amu" in said
        assert "from 1e-06 to 1e+06 amu" in said and "structure one" in said


@pytest.mark.parametrize(("masses", "found"), [(["28"] * 8, "text"), ([True] * 8, "truth values")])
def test_masses_are_numbers(masses, found):
    assert f"masses: expected real numbers, found {found}" in refusal(structure(masses=masses))


@pytest.mark.parametrize("mass", [LIGHTEST, 1.0, 1e4, HEAVIEST])
def test_within_the_bounds_single_precision_has_numbers(mass):
    """Delta Q and its gradient, with moves as long as positions may lie apart, and rotations."""
    row = read_row(Given(structure(masses=one_of(mass))), 0)
    for pbc in (True, False):
        structures = Structures(
            torch.zeros(8, dtype=torch.long),
            torch.ones(8, dtype=torch.bool),
            torch.tensor(row.info["masses"], dtype=torch.float32),
            torch.tensor(row.cell.array, dtype=torch.float32)[None],
            torch.tensor([[pbc] * 3]),
        )
        target = torch.tensor(row.info["pos_relaxed"], dtype=torch.float32)
        for reach in (0.0, 1e-4, 0.1, 1e4):
            moved = torch.linspace(-1, 1, 24).view(8, 3) ** 3 * reach
            positions = (target + moved).requires_grad_()
            for pin in (0, 1, 2):
                pins = torch.tensor([pin])
                found = delta_q(positions, target, structures, pins)
                (gradient,) = torch.autograd.grad(found.sum(), positions)
                moves = free_displacement(positions, target, structures, pins)
                assert all(bool(x.isfinite().all()) for x in (found, gradient, moves))


# ---- constraints ----------------------------------------------------------------------------------

OTHERS = {
    "FixedPlane": lambda atoms: FixedPlane([0, 1], (0, 0, 1)),
    "FixedLine": lambda atoms: FixedLine([0], (0, 0, 1)),
    "FixBondLengths": lambda atoms: FixBondLengths([[0, 1]]),
    "FixCartesian (of some directions)": lambda atoms: FixCartesian([0], (True, True, False)),
    "FixScaled (of some directions)": lambda atoms: FixScaled([0], (True, False, False)),
    "FixCom": lambda atoms: FixCom(),
    "Hookean": lambda atoms: Hookean(0, 1, 5.0, 2.0),
    "FixSymmetry": FixSymmetry,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_constraint_that_would_be_dropped_is_refused(kind):
    row = structure()
    row.set_constraint([FixAtoms([5]), OTHERS[kind](row)])
    said = refusal(row)
    assert f"it has a {kind} constraint, which would be dropped" in said and "Use FixAtoms" in said


def test_a_constraint_of_atoms_that_are_not_there_is_refused():
    row = structure()
    row.set_constraint(FixAtoms([1, 8]))
    assert "its FixAtoms holds atom 8, and it has 8 atoms" in refusal(row)


@pytest.mark.parametrize("kind", [FixCartesian, FixScaled])
def test_fixed_in_all_directions_is_fixed(kind):
    """One that fixes nothing is nothing; both are what ASE reads of an extended XYZ."""
    row = structure()
    row.set_constraint([kind([1, 4]), kind([2], (False,) * 3), FixAtoms([6])])
    check(row, "here")
    assert np.flatnonzero(~free_atoms(row)).tolist() == [1, 4, 6]
    found = read_row(Given(row), 0)
    assert [type(one) for one in found.constraints] == [FixAtoms]
    assert np.flatnonzero(~free_atoms(found)).tolist() == [1, 4, 6]


def written(folder, *rows):
    """An ASE-LMDB of rows."""
    folder.mkdir()
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for row in rows:
            data = dict(row.info)
            plain = row.copy()
            plain.info = {}
            database.write(plain, data=data)
    np.savez(folder / "metadata.npz", natoms=[len(row) for row in rows])
    return folder


def test_constraints_of_files(tmp_path):
    """Databases, trajectories and other files: held in all directions is fixed, others are named."""
    held, other = structure(sid="held"), structure(sid="other")
    held.set_constraint(FixCartesian([1, 4]))
    other.set_constraint(FixedPlane([0], (0, 0, 1)))
    folder = written(tmp_path / "lmdb", held, other)
    wanted = r"1 of 2 rows.*data.aselmdb, row 2, structure other: it has a FixedPlane constraint"
    with pytest.raises(BadRows, match=wanted):
        IS2RSDataset({"src": str(folder)})
    a2g = {"task_name": "si"}
    rows = IS2RSDataset({"src": str(folder), "skip_bad": True, "a2g_args": a2g})
    assert len(rows) == 1 and rows[0].fixed.nonzero().flatten().tolist() == [1, 4]

    for name, row in (("held", held), ("other", other)):
        (tmp_path / name).mkdir()
        ase.io.write(tmp_path / name / f"{name}.traj", [row.copy(), row.copy()])
    with pytest.raises(BadRows, match=r"other.traj, structure other: it has a FixedPlane"):
        TrajectoryDataset({"src": str(tmp_path / "other")})
    rows = TrajectoryDataset({"src": str(tmp_path / "held"), "a2g_args": a2g})
    assert rows[0].fixed.nonzero().flatten().tolist() == [1, 4]

    some = structure(sid="some")
    some.set_constraint(FixCartesian([1], (True, False, False)))
    for row in (held, some):
        row.info.pop("pos_relaxed")
        ase.io.write(tmp_path / f"{row.info['sid']}.extxyz", row)
    (start,), _ = open_starts(tmp_path / "held.extxyz")
    assert np.flatnonzero(~free_atoms(start.atoms)).tolist() == [1, 4]
    with pytest.raises(BadRows, match=r"some.extxyz, frame 0.*FixCartesian \(of some directions\)"):
        open_starts(tmp_path / "some.extxyz")


def test_the_converter_keeps_what_is_held_and_names_what_it_would_drop(tmp_path, capsys):
    held, other = structure(sid="held"), structure(sid="other", masses=one_of(np.inf))
    held.set_constraint(FixCartesian([1, 4]))
    source = written(tmp_path / "lmdb", held, other)
    assert main(["inspect", str(source)]) == 1
    assert "row 2, structure other: atom 3 has a mass of inf amu" in capsys.readouterr().out
    with pytest.raises(BadRows, match="row 2, structure other: atom 3"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "skipped", skip_bad=True)
    found = open_source(tmp_path / "skipped").read(0)
    assert [one.index.tolist() for one in found.constraints] == [[1, 4]]
    assert isinstance(found.constraints[0], FixAtoms)


def test_a_file_that_was_checked_for_less_is_checked_again(tmp_path, monkeypatch, caplog):
    """The plane was let through by the converter of then."""
    caplog.set_level("INFO")
    other = structure(sid="other")
    other.set_constraint(FixedPlane([0], (0, 0, 1)))
    source = written(tmp_path / "lmdb", structure(), other)
    with monkeypatch.context() as then:
        then.setattr("fairchem_gdeq.data.convert.CHECKS", 1)
        then.setattr("fairchem_gdeq.data.rows.wrong_constraint", lambda atoms: None)
        then.setattr("fairchem_gdeq.data.reading.use_fix_atoms", lambda atoms: None)
        convert(source, tmp_path / "out")
    with pytest.raises(BadRows, match="row 2, structure other: it has a FixedPlane"):
        IS2RSDataset({"src": str(tmp_path / "out")})
    again = "converted by a version that checked less"
    assert again in caplog.text
    caplog.clear()
    IS2RSDataset({"src": str(written(tmp_path / "own", structure()))})  # nobody converted it
    convert(written(tmp_path / "lmdb2", structure()), tmp_path / "now")
    IS2RSDataset({"src": str(tmp_path / "now")})
    assert again not in caplog.text


# ---- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (["no"] * 8, "free: expected real numbers, found text"),
        ([None] * 8, "free: expected real numbers, found NoneType"),
        (one_of(np.nan, 1.0), "free is nan for atom 3: expected true or false, or 1 or 0"),
        (one_of(2, 1), "free is 2 for atom 3"),
        (one_of(0.5, 1), "free is 0.5 for atom 3"),
        (one_of(1j, 1, complex), "free: expected real numbers, found complex numbers"),
        ("yes", "free: expected real numbers, found text"),
    ],
)
def test_free_is_yes_or_no(free, words):
    assert words in refusal(structure(free=free))


@pytest.mark.parametrize("dtype", [bool, int, float, np.uint8])
def test_free_may_be_of_any_numbers(dtype):
    free = one_of(0, 1, dtype)
    for given in (free, free.tolist()):
        found = free_atoms(read_row(Given(structure(free=given)), 0))
        assert found.tolist() == [True] * 3 + [False] + [True] * 4


def test_complex_positions_are_refused(tmp_path):
    row = structure()
    row.arrays["positions"] = row.positions + 0.1j
    said = refusal(row)
    assert "start positions: expected real numbers, found complex numbers" in said
    target = structure()
    target.info["pos_relaxed"] = target.positions + 0j
    assert "pos_relaxed: expected real numbers, found complex numbers" in refusal(target)
    words = structure()
    words.info["pos_relaxed"] = words.positions.astype(str)
    assert "pos_relaxed: expected real numbers, found text" in refusal(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(written(tmp_path / "complex", row))
        with pytest.raises(BadRow, match="row 1, structure one: complex numbers: expected real"):
            read_row(source, 0)


def test_a_cell_beyond_single_precision_is_refused():
    row = structure()
    row.cell[2, 2] = 1e60
    assert "the cell reaches to 1e+60 Angstrom: expected at most 10000" in refusal(row)


# ---- names ----------------------------------------------------------------------------------------

NO_NAMES = {
    "line": ('a\nb "c" =d', r"the character '\n' in 'a\nb "),
    "tab": ("a\tb", r"'\t'"),
    "nothing": ("", "found '', which names nothing"),
    "blank": ("  ", "found '  ', which names nothing"),
    "invisible": ("a\u200bb", r"'\u200b'"),
    "separator": ("a\u2028b", r"'\u2028'"),
    "half": ("a\ud800", r"'\ud800'"),
    "list": ([1, 2], "found a list"),
    "dict": ({"a": 1}, "found a dict"),
    "none": (None, "found a NoneType"),
    "nan": (float("nan"), "found nan"),
    "bool": (True, "found a bool"),
    "array": (np.arange(2), "found a ndarray"),
}


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused(name):
    sid, words = NO_NAMES[name]
    said = refusal(structure(sid=sid))
    assert "its name (sid): expected" in said and words in said and "Name it otherwise" in said


@pytest.mark.parametrize("sid", ["slab-17", 17, np.int64(17), 'a "b" = {c}, é', "C:\\new", "007"])
def test_what_is_a_name_is_taken(sid):
    assert read_row(Given(structure(sid=sid)), 0).info["sid"] == sid


def test_a_row_may_be_without_a_name_or_with_a_number_of_its_frame():
    row = structure(fid=3)
    del row.info["sid"]
    assert read_row(Given(row), 0).info["fid"] == 3
    assert "its name (fid)" in refusal(structure(fid="a\nb"))


def test_names_of_pickles(tmp_path):
    """A number in whatever PyG has kept it in is one, as before."""
    good = [7, "seven", torch.tensor(7), torch.tensor([7]), [7], None]
    bad = ["a\nb", {"a": 1}, [1, 2], ""]
    records = [pyg.pyg2(pyg.fields(pyg.slab(), sid=sid)) for sid in [*good, *bad]]
    pyg.write(tmp_path / "data.lmdb", records)
    source = open_source(tmp_path / "data.lmdb")
    names = [read_row(source, i).info["sid"] for i in range(len(good))]
    assert names == ["7", "seven", "7", "7", "7", "data_5"]
    for index in range(len(good), len(records)):
        with pytest.raises(BadRow, match=rf"key {index}: its name \(sid\): expected") as error:
            read_row(source, index)
        assert str(error.value).isprintable()


def test_names_that_ase_has_made_numbers_of_are_words_again(tmp_path):
    file = Path(tmp_path / "frames.extxyz")
    rows = [structure(sid=sid) for sid in ("1.5", "T", "17", "a b")]
    for row in rows:
        del row.info["pos_relaxed"]
    ase.io.write(file, rows)
    starts, _ = open_starts(file)
    assert [start.name for start in starts] == ["1.5", "True", "17", "a b"]


@pytest.mark.parametrize("key", ["sid", "fid"])
@pytest.mark.parametrize(
    ("given", "name"),
    [(["a"], "a"), (np.array([7]), 7), (np.array("b"), "b"), (1e5, 1e5)],
)
def test_a_name_as_fairchem_and_pandas_have_it(key, given, name):
    """fairchem writes lists of one name, and an id from a table may be a float."""
    atoms = bulk("Si", cubic=True)
    atoms.info[key] = given
    check_names(atoms, "row 1")
    assert atoms.info[key] == name
    atoms.info[key] = [1, 2]
    with pytest.raises(BadRow, match="found a list"):
        check_names(atoms, "row 1")
