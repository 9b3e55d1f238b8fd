"""The converter and ``inspect``: same rows, same file after an interruption, what is reported."""

import os
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.data import writer
from fairchem_gdeq.data.convert import convert, main
from fairchem_gdeq.data.is2rs import IS2RSDataset, LegacyDataset, collate
from fairchem_gdeq.data.legacy import LegacySource
from fairchem_gdeq.data.parts import Part
from fairchem_gdeq.data.reading import BadRows, Scan, scan
from fairchem_gdeq.data.rows import BadRow, free_atoms
from fairchem_gdeq.data.sources import open_source
from fairchem_gdeq.data.summary import summarise, text
from fairchem_gdeq.relax import Operator, Structures
from fairchem_gdeq.relax.loss import delta_q
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import small
from tests.data.test_formats import relaxation
from tests.data.test_legacy import Hostile, changed


def records(folder):
    """All keys and values of a converted set, and its metadata."""
    path = folder / "data.aselmdb"
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env,
        env.begin() as transaction,
    ):
        found = dict(transaction.cursor())
    return found, np.load(folder / "metadata.npz")["natoms"].tolist()


@pytest.fixture
def legacy(tmp_path):
    pyg.legacy(tmp_path / "old.lmdb", 10, pyg.pyg2)
    return tmp_path / "old.lmdb"


def test_converted_rows_are_the_rows(tmp_path, legacy):
    result = convert(legacy, tmp_path / "new")
    assert (result.written, result.compared, result.skipped) == (10, 10, [])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["data.aselmdb", "metadata.npz"]
    old, new = LegacyDataset({"src": str(legacy)}), IS2RSDataset({"src": str(tmp_path / "new")})
    assert new.source.checked and new.get_metadata("natoms", [0, 1]) == [13, 13]
    a, b = (collate([rows[i] for i in range(10)]) for rows in (old, new))
    assert set(a.keys()) == set(b.keys()) and a.sid == b.sid
    for key in ("pos", "pos_relaxed", "cell", "fixed", "tags", "mass", "pbc", "atomic_numbers"):
        assert (a[key] == b[key]).all(), key
    assert new.get_atoms(3).info["energy_relaxed"] == -0.5


def test_any_source_and_back_again(tmp_path):
    """Trajectories to a set, that set to another: nothing changes any more."""
    (tmp_path / "t").mkdir()
    for i in range(3):
        write(tmp_path / "t" / f"{i}.traj", relaxation(i))
    convert(tmp_path / "t", tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "two")
    assert records(tmp_path / "one") == records(tmp_path / "two")
    small.write_is2rs(tmp_path / "si", small.silicon(3, fixed=(1,)))
    convert(tmp_path / "si", tmp_path / "three")
    data = IS2RSDataset({"src": str(tmp_path / "three")})
    assert [data[i].sid for i in range(3)] == [["row0"], ["row1"], ["row2"]]
    assert data[0].fixed[1] == 1 and records(tmp_path / "three")[1] == [8, 7, 6]


class Interrupted:
    """A source during whose n-th read somebody presses Ctrl-C."""

    target_key = "pos_relaxed"

    def __init__(self, source, reads):
        self.source, self.left = source, reads
        self.where = source.where

    def __len__(self):
        return len(self.source)

    def read(self, index):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.source.read(index)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(1, 4))
def test_interrupted_and_started_again_gives_the_same_file(tmp_path_factory, stops, chunk):
    folder = tmp_path_factory.mktemp("resume")
    old, parts = folder / "old.lmdb", folder / "parts"
    pyg.legacy(old, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK", chunk)
        convert(old, folder / "whole")
        for stop in stops:
            source = Interrupted(LegacySource(old), stop)
            patch.setattr("fairchem_gdeq.data.convert.open_source", lambda *_, s=source: s)
            with pytest.raises(KeyboardInterrupt):
                convert(old, parts)
            assert sorted(p.name for p in parts.glob("data*")) == ["data.aselmdb.partial"]
        patch.setattr("fairchem_gdeq.data.convert.open_source", open_source)
        convert(old, parts)
    assert records(folder / "whole") == records(parts)
    whole, resumed = ((folder / name / "data.aselmdb").read_bytes() for name in ("whole", "parts"))
    assert whole == resumed


def test_several_processes_write_the_same_file(tmp_path, legacy, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK", 3)
    convert(legacy, tmp_path / "one", workers=1)
    convert(legacy, tmp_path / "two", workers=2)
    assert records(tmp_path / "one") == records(tmp_path / "two")


def test_bad_rows_end_it_with_the_list_and_skipping_goes_on_from_there(tmp_path, capsys):
    rows = [pyg.fields(pyg.slab(i), sid=i) for i in range(6)]
    rows[2]["pos"] = rows[2]["pos"][:5]
    rows[4]["cell"] = rows[4]["cell"] * 0
    pyg.write(tmp_path / "old.lmdb", [pyg.pyg1(row) for row in rows])
    with pytest.raises(BadRows, match="2 of 6 rows") as error:
        convert(tmp_path / "old.lmdb", tmp_path / "new")
    assert "key 2" in str(error.value) and "key 4" in str(error.value)
    assert "--skip-bad" in str(error.value) and not (tmp_path / "new" / "data.aselmdb").exists()
    with pytest.raises(SystemExit, match="2 of 6 rows"):
        main([str(tmp_path / "old.lmdb"), str(tmp_path / "new")])
    assert main([str(tmp_path / "old.lmdb"), str(tmp_path / "new"), "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "2 bad rows left out" in out and "key 4, structure 4" in out and "4 rows in" in out
    data = IS2RSDataset({"src": str(tmp_path / "new")})
    assert [data[i].sid[0] for i in range(len(data))] == ["0", "1", "3", "5"]


def test_what_is_refused(tmp_path, legacy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(legacy, tmp_path / "new")
    with pytest.raises(FileExistsError, match="a finished data set"):
        convert(legacy, tmp_path / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"other files \(thesis.tex"):
        convert(legacy, tmp_path / "full")
    with pytest.raises(ValueError, match="lies in the source"):
        convert(tmp_path / "new", tmp_path / "new" / "more")
    for missing in ("none", "none.lmdb"):
        with pytest.raises(SystemExit, match="no such file or folder"):
            main([missing, "out"])
    with pytest.raises(ValueError, match=r"expected .aselmdb"):
        open_source(tmp_path / "full" / "thesis.tex")
    pyg.write(tmp_path / "hostile.lmdb", [pyg.pyg1(changed(sid=Hostile()))])
    with pytest.raises(BadRows, match=r"hostile.lmdb, key 0: refused, .*posix.system"):
        convert(tmp_path / "hostile.lmdb", tmp_path / "h", skip_bad=True)
    assert main(["inspect", "hostile.lmdb"]) == 1
    assert not (tmp_path / "hostile_ran").exists()


def test_a_changed_source_is_not_mixed_with_the_beginning_of_another(tmp_path, legacy, monkeypatch):
    source = Interrupted(LegacySource(legacy), 5)
    monkeypatch.setattr(writer, "CHUNK", 2)
    with monkeypatch.context() as patch:
        patch.setattr("fairchem_gdeq.data.convert.open_source", lambda *_: source)
        with pytest.raises(KeyboardInterrupt):
            convert(legacy, tmp_path / "new")
    os.utime(legacy, (1, 1))
    with pytest.raises(FileExistsError, match="beginning of another conversion"):
        convert(legacy, tmp_path / "new")


def test_a_wrong_copy_is_found(tmp_path, legacy, monkeypatch):
    encode = writer.encode_row

    def wrong(atoms, target_key):
        atoms.positions[0, 0] += 1e-6
        return encode(atoms, target_key)

    monkeypatch.setattr(writer, "encode_row", wrong)
    with pytest.raises(RuntimeError, match=r"row 1: positions differs from .*key 0"):
        convert(legacy, tmp_path / "new")
    assert not (tmp_path / "new" / "data.aselmdb").exists()


def test_inspect_measures_what_numpy_does(tmp_path):
    slabs = pyg.legacy(tmp_path / "old.lmdb", 4)
    found = summarise(LegacySource(tmp_path / "old.lmdb"))
    for i, slab in enumerate(slabs):
        step = slab.info["pos_relaxed"] - slab.positions
        expected = np.sqrt((slab.get_masses()[:, None] * step**2).sum())
        assert found.delta_q[i] == pytest.approx(expected, rel=1e-4)
        assert found.moved[i] == pytest.approx(np.linalg.norm(step, axis=1).max(), rel=1e-4)
        assert found.fixed[i] == (~free_atoms(slab)).sum()
    shown = text(found)
    assert "4 good, 0 bad" in shown and "Pt 4 (48)" in shown and "N 2 (2), O 2 (2)" in shown
    assert "16 in 4 structures" in shown and "nothing found" in shown
    assert f"sum {sum(found.delta_q):.3f}" in shown


class Plain:
    """A field that feels neither shifts nor turns, for the operator's choice."""

    translation_invariant = rotation_equivariant = True


@pytest.mark.parametrize("fixed", [(), (1,)])
@pytest.mark.parametrize("pbc", [(False,) * 3, (False, False, True), (True,) * 3])
def test_inspect_measures_what_scoring_does(tmp_path, pbc, fixed):
    """Rigid motions of a target that has none fixed: ``inspect`` takes out what the scores take out."""
    rng = np.random.default_rng(3)
    start = Atoms("CNOF", rng.normal(size=(4, 3)), cell=[30.0] * 3, pbc=pbc)
    start.set_constraint(FixAtoms(fixed))
    turned = start.copy()
    turned.rotate(25, (1, 2, 3))  # degrees
    turned.positions += [0.4, -0.2, 0.1]
    with connect(tmp_path / "a.aselmdb", type="aselmdb") as database:
        database.write(start, data={"sid": "a", "pos_relaxed": turned.positions})
    found = summarise(open_source(tmp_path / "a.aselmdb"))
    data = IS2RSDataset({"src": str(tmp_path / "a.aselmdb")})[0]
    s = Structures(
        batch=torch.zeros(4, dtype=torch.long),
        free=data.fixed == 0,
        masses=data.mass.double(),
        cell=data.cell.double(),
        pbc=data.pbc,
    )
    operator = Operator.build(Plain(), s, 0.05)
    ends = (data.pos.double(), data.pos_relaxed.double())
    assert found.delta_q == pytest.approx(delta_q(*ends, s, operator.pin).tolist(), abs=1e-4)
    assert (found.delta_q[0] < 1e-3) == (not any(pbc) and not fixed)


def test_names_that_several_files_have_are_said(tmp_path, caplog):
    """Of one data set, whether its files are converted ones or are read through."""
    for part, sids in (("a", ["x", "y"]), ("b", ["y", "z"]), ("c", ["u", "u"])):
        small.write_is2rs(tmp_path / part, small.silicon(2), sids=sids)
        convert(tmp_path / part, tmp_path / "new" / part)

    def said(*parts):
        caplog.clear()
        assert len(IS2RSDataset({"src": [str(tmp_path / part) for part in parts]})) == 2 * len(
            parts
        )
        return caplog.text

    both = "2 rows have a name (sid) that others have too, 1 such names: y (2 rows)"
    assert said("new/a", "new/c").count("1 such names: u (2 rows)") == 1
    assert both in said("a", "b") and both in said("new/a", "new/b") and both in said("new/a", "b")
    assert not said("new/a") and "1 such names: u (2 rows)" in said("new/c")
    assert "4 rows have a name (sid) that others have too, 2" in said("new/a", "new/b", "new/c")


def test_files_from_before_names_were_noted(tmp_path, caplog):
    for part in ("a", "b"):
        small.write_is2rs(tmp_path / part, small.silicon(2), sids=["x", "x"])
        convert(tmp_path / part, tmp_path / "new" / part)
    old = tmp_path / "new" / "b" / "data.aselmdb"
    with connect(old, type="aselmdb") as database:
        stamp = database.metadata["fairchem_gdeq"]
        del stamp["names"]
        database.metadata = {"fairchem_gdeq": stamp}
    data = IS2RSDataset({"src": [str(tmp_path / "new" / part) for part in ("a", "b")]})
    assert data.source.checked and caplog.text.count("1 such names: x (2 rows)") == 2
    assert f"The names in {old} are not compared with those of other files" in caplog.text


def test_inspect_says_what_is_wrong(tmp_path):
    rows = [pyg.fields(pyg.slab(i), sid=i // 2) for i in range(4)]
    rows[1]["pos_relaxed"] = rows[1]["pos"]
    rows[2]["pos_relaxed"] = rows[2]["pos_relaxed"] + torch_shift(rows[2])
    rows[3]["pos_relaxed"][0, 0] = float("nan")
    pyg.write(tmp_path / "old.lmdb", [pyg.pyg1(row) for row in rows])
    shown = text(summarise(LegacySource(tmp_path / "old.lmdb")))
    assert "3 good, 1 bad" in shown
    assert "1 sids occur more than once (0" in shown
    assert "1 structures have a target equal to their start" in shown
    assert "fixed atoms of 1 structures move, by up to 0.250 Angstrom" in shown
    assert "key 3, structure 1: pos_relaxed positions contain NaN" in shown


def torch_shift(row):
    """0.25 Angstrom along x for the fixed atoms."""
    return row["fixed"][:, None] * row["pos"].new_tensor([0.25, 0, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.lists(st.booleans(), min_size=3, max_size=3))
def test_any_structure_survives_the_row_format(tmp_path_factory, seed, n, pbc):
    """To the last digit, read back by ASE: the bytes are this project's, the format is ASE's."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(rng.integers(1, 119, n), rng.normal(0, 9, (n, 3)), pbc=pbc)
    atoms.cell = rng.normal(0, 9, (3, 3))
    atoms.set_tags(rng.integers(0, 3, n))
    atoms.set_masses(rng.uniform(1, 9, n))
    atoms.set_constraint(FixAtoms(np.flatnonzero(rng.random(n) < 0.5)))
    atoms.info = {"sid": "a", "goal": rng.normal(size=(n, 3)), "energy_relaxed": rng.normal()}
    path = tmp_path_factory.mktemp("row") / "a.aselmdb"
    partial = writer.PartialFile(path.with_suffix(".partial"), {})
    partial.append(writer.Chunk([writer.encode_row(atoms, "goal")], [n]))
    partial.finish({"about": "this"}, path)
    with connect(path, type="aselmdb", readonly=True, use_lock_file=False) as database:
        assert len(database) == 1 and database.metadata == {"about": "this"}
        row = database.get(1)
    found = row.toatoms()
    assert found == atoms and found.get_masses().tolist() == atoms.get_masses().tolist()
    assert found.get_tags().tolist() == atoms.get_tags().tolist()
    assert free_atoms(found).tolist() == free_atoms(atoms).tolist()
    np.testing.assert_array_equal(row.data["pos_relaxed"], atoms.info["goal"])
    assert row.data["energy_relaxed"] == atoms.info["energy_relaxed"] and "goal" not in row.data


def test_starts_only(tmp_path, capsys):
    """Test splits: converted and looked at without targets, and not taken for more."""
    row = pyg.fields(pyg.slab())
    del row["pos_relaxed"]
    pyg.write(tmp_path / "test.lmdb", [pyg.pyg1(row)])
    assert main([str(tmp_path / "test.lmdb"), str(tmp_path / "new"), "--no-target"]) == 0
    assert main(["inspect", str(tmp_path / "new"), "--no-target"]) == 0
    assert "Delta Q" not in capsys.readouterr().out
    data = IS2RSDataset({"src": str(tmp_path / "new"), "target_key": None})
    assert data.source.checked and data[0].natoms == 13
    with pytest.raises(BadRows, match="no 'pos_relaxed'"):
        IS2RSDataset({"src": str(tmp_path / "new")})


def test_rows_added_after_the_conversion_are_checked(tmp_path, legacy):
    convert(legacy, tmp_path / "new")
    with connect(tmp_path / "new" / "data.aselmdb", type="aselmdb") as database:
        database.write(pyg.slab(), data={"sid": "late"})
    with pytest.raises(BadRows, match="1 of 11 rows") as error:
        IS2RSDataset({"src": str(tmp_path / "new")})
    assert "structure late: no 'pos_relaxed'" in str(error.value)


def test_ctrl_c_says_how_to_go_on(tmp_path, legacy, monkeypatch):
    source = Interrupted(LegacySource(legacy), 3)
    monkeypatch.setattr("fairchem_gdeq.data.convert.open_source", lambda *_: source)
    with pytest.raises(SystemExit, match="interrupted; the same command goes on from here"):
        main([str(legacy), str(tmp_path / "new")])


def test_command_in_both_forms(tmp_path, legacy, capsys):
    command = [sys.executable, "-m", "fairchem_gdeq.data.convert", str(legacy), "new"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "10 rows in new; count right, 10 compared" in done.stdout and "row/s" in done.stderr
    assert main(["convert", str(legacy), str(tmp_path / "again")]) == 0
    assert records(tmp_path / "new") == records(tmp_path / "again")
    assert main(["inspect", str(tmp_path / "new")]) == 0
    assert "10 good, 0 bad" in capsys.readouterr().out


def test_scan_keeps_what_is_good():
    class Source:
        target_key = None

        def where(self, index):
            return f"row {index}"

        def read(self, index):
            if index % 2:
                raise OSError("disk")
            return small.silicon(1)[0]

    found = scan(Source(), range(5))
    assert isinstance(found, Scan) and found.good == [0, 2, 4] and found.natoms == [8, 8, 8]
    assert all(isinstance(bad, BadRow) for bad in found.bad)
    assert str(found.bad[0]) == "row 1: cannot be read (OSError: disk)"


def test_parts_are_the_whole(tmp_path, legacy):
    """Converted one by one, in any order, with workers or without."""
    convert(legacy, tmp_path / "whole")
    for number, workers in ((3, 1), (1, 2), (2, 1)):
        assert (
            main(
                [
                    str(legacy),
                    str(tmp_path / "parts"),
                    "--part",
                    f"{number}/3",
                    "--workers",
                    str(workers),
                ]
            )
            == 0
        )
    whole = IS2RSDataset({"src": str(tmp_path / "whole")})
    parts = IS2RSDataset({"src": str(tmp_path / "parts" / "part_*")})
    assert len(parts) == len(whole) == 10
    indices = list(range(10))
    assert parts.get_metadata("natoms", indices) == whole.get_metadata("natoms", indices)
    for one, other in zip(parts, whole, strict=True):
        assert one.sid == other.sid and torch.equal(one.pos_relaxed, other.pos_relaxed)


def test_a_data_set_without_one_of_its_parts_is_refused(tmp_path, legacy):
    pattern = str(tmp_path / "parts" / "part_*")
    convert(legacy, tmp_path / "parts", part=Part(1, 3))
    with pytest.raises(FileNotFoundError, match=r"2 of 3 parts .*\(2, 3\)"):
        IS2RSDataset({"src": pattern})
    convert(legacy, tmp_path / "parts", part=Part(2, 3))
    unfinished = Part(3, 3).folder(tmp_path / "parts")
    unfinished.mkdir()
    (unfinished / "data.aselmdb.partial").touch()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 parts .*\(3\)"):
        IS2RSDataset({"src": pattern})


@given(st.integers(0, 50), st.integers(1, 9))
def test_every_row_is_in_one_part(total, of):
    parts = [Part(number, of).rows(total) for number in range(1, of + 1)]
    assert [row for part in parts for row in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_no_such_part(text):
    with pytest.raises(ValueError, match="expected one of a number of parts"):
        Part.parse(text)
