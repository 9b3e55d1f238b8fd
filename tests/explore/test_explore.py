"""The command of ``fairchem_gdeq.explore``: what it labels, and that it never does so twice."""

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.db import connect
from ase.io import read, write

import fairchem_gdeq as gdeq
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.explore.__main__ import main
from fairchem_gdeq.explore.labels import Labeller, Reference
from fairchem_gdeq.explore.pack import pack
from fairchem_gdeq.explore.paths import Settings, distinct, evenly, sound, walk
from fairchem_gdeq.explore.records import Folder
from fairchem_gdeq.explore.starts import named, open_starts
from fairchem_gdeq.fairchem2.replay import ForceReplay
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, Relaxer, solve
from fairchem_gdeq.testing.fairchem2 import small
from tests.explore.conftest import REFERENCE, command, rows_of
from tests.explore.reference import PARAMETERS, calls


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """All of it in one go, against which interrupted and divided runs are held."""
    folder = tmp_path_factory.mktemp("whole")
    command(given, folder / "out", label=("--calculator", REFERENCE, f"log={folder}/log"))
    return folder


def same(one, other):
    """Two data sets are equal, but for what packs of other sizes do to the last digits."""
    found, expected = rows_of(one), rows_of(other)
    assert list(found) == list(expected) and len(found) > 10
    for sid, frame in found.items():
        np.testing.assert_allclose(frame.positions, expected[sid].positions, atol=1e-4)
        np.testing.assert_allclose(frame.get_forces(), expected[sid].get_forces(), atol=1e-2)


def test_frames_lie_on_the_paths_of_the_model(given, whole):
    """Against the plain solver on each structure alone; the start and the end are among them."""
    rows = rows_of(whole / "out")
    potential = gdeq.load_potential(given / "esen.pt", device="cpu")
    starts, _ = open_starts(given / "starts")
    for start in starts:
        row = potential.row(start.atoms, 0)
        operator = IS2RS(alpha=0.05).operator_of(potential.field(row), row)
        path = [row.pos]
        solve(
            operator, row.pos, LBFGS(softest=10.0), 0.001, 7, lambda x, _, path=path: path.append(x)
        )
        mine = {
            int(sid.rpartition("_step")[2]): atoms
            for sid, atoms in rows.items()
            if sid.startswith(f"{start.name}_step")
        }
        assert 2 <= len(mine) <= 4 and {0, len(path) - 1} <= set(mine)
        for step, frame in mine.items():
            np.testing.assert_allclose(frame.positions, path[step].numpy(), atol=1e-4)
            np.testing.assert_array_equal(frame.positions[[0, 2]], start.atoms.positions[[0, 2]])
            assert frame.constraints[0].index.tolist() == [0, 2]


def test_labels_are_those_of_the_calculator_and_errors_those_of_the_model(given, whole):
    rows = rows_of(whole / "out")
    assert calls(whole / "log") == len(rows)
    potential = gdeq.load_potential(given / "esen.pt", device="cpu")
    errors, ends = [], []
    for sid, frame in rows.items():
        again = frame.copy()
        again.calc = LennardJones(**PARAMETERS)
        true = again.get_forces(apply_constraint=False)
        np.testing.assert_allclose(frame.get_forces(apply_constraint=False), true, atol=1e-9)
        assert frame.get_potential_energy() == pytest.approx(again.get_potential_energy())
        free = np.delete(np.arange(len(frame)), [0, 2])
        errors.append(np.abs(potential.forces(frame)[0] - true)[free].mean())
        if sid.endswith("_step7"):
            ends.append(errors[-1])
    summary = pack(Folder(whole / "out"))
    assert (summary.structures, summary.packed) == (5, len(rows))
    np.testing.assert_allclose(summary.errors, errors, atol=1e-4)
    np.testing.assert_allclose(summary.ends, ends, atol=1e-4)
    assert len(ends) == 5


def test_the_output_trains(whole):
    (task,) = small.tasks()
    model = small.model("esen", double=False)
    settings = ForceReplay(src=[str(whole / "out")], dataset="si", max_atoms=16)
    batches = settings.open(task, model)
    known = rows_of(whole / "out")
    assert len(batches.frames) == len(known)
    batch = batches(0, None, None)
    found = batch[batches.task.name].split(batch.natoms.tolist())
    for sid, forces in zip(batch.sid, found, strict=True):
        np.testing.assert_allclose(
            forces, known[sid].get_forces(apply_constraint=False), rtol=1e-5, atol=1e-4
        )
    assert collate([batches.frames[0]]).fixed.sum() == 2


def test_what_is_labelled_is_not_labelled_again(given, whole, explore, capsys):
    before, log = rows_of(whole / "out"), whole / "log"
    number = calls(log)
    options = ("--calculator", REFERENCE, f"log={log}")
    assert explore(whole / "out", label=options) == 0
    assert calls(log) == number
    said = capsys.readouterr().out
    assert "reference calls, in this run" in said and list(rows_of(whole / "out")) == list(before)

    for words, label, what in (
        (("--frames", "3"), options, r"another setting: frames: 4 there, 3 now\. Give the same"),
        ((), (*options, "spoils=3"), r"another reference: options: \[.*spoils=3'\] now"),
        (
            ("--tolerance", "0.3", "--alpha", "0.1"),
            options,
            "alpha: 0.05 there, 0.1 now; tolerance",
        ),
    ):
        with pytest.raises(SystemExit, match=what):
            explore(whole / "out", *words, label=label)
    small.checkpoint(given / "other.pt", seed=3)
    with pytest.raises(SystemExit, match="another setting: model: "):
        explore(whole / "out", model=given / "other.pt", label=options)
    moved = [start.atoms for start in open_starts(given / "starts")[0]]
    for i, atoms in enumerate(moved):
        atoms.info["sid"] = f"row{i}"
        atoms.positions[1] += 0.1
    write(given / "moved.extxyz", moved)
    with pytest.raises(SystemExit, match="row0 began at another structure"):
        explore(whole / "out", starts=given / "moved.extxyz", label=options)
    assert calls(log) == number


def test_a_folder_of_something_else_is_refused(tmp_path, explore):
    small.write_frames(tmp_path, small.silicon(2))
    with pytest.raises(SystemExit, match=r"holds other files: choose another folder.*forces\.src"):
        explore(tmp_path)


def killed(function, replacements, *arguments):
    """Run it in a fork that is killed in the middle of its ``replacements``-th write, if it comes."""

    def child():
        true, left = os.replace, [replacements]

        def replace(*paths):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            true(*paths)

        os.replace = replace
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("write_number", [1, 4, 12, 27, 28, 29])
def test_a_kill_in_the_middle_of_a_write_costs_no_more_than_that(
    write_number, whole, explore, tmp_path
):
    """Writes: settings, five records, the reference, twenty labels, the data, its metadata."""
    label = ("--calculator", REFERENCE, f"log={tmp_path / 'log'}")
    number = len(rows_of(whole / "out"))
    assert number == 20

    def run():
        explore(tmp_path / "out", label=label)

    assert killed(run, write_number) == -signal.SIGKILL
    run()
    same(tmp_path / "out", whole / "out")
    # One call whose label was not written yet is made again.
    again = 1 if 7 < write_number <= 27 else 0
    assert calls(tmp_path / "log") == number + again
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data.aselmdb",
        "metadata.npz",
        "work",
    ]


def test_parts_equal_the_whole(whole, explore, tmp_path, capsys):
    for part in ("2/3", "1/3", "3/3"):
        assert explore(tmp_path / "out", "--part", part) == 0
        assert not (tmp_path / "out" / "data.aselmdb").exists()
    assert "When all parts are: pack" in capsys.readouterr().out
    assert main(["pack", str(tmp_path / "out")]) == 0
    same(tmp_path / "out", whole / "out")
    natoms = np.load(tmp_path / "out" / "metadata.npz")["natoms"]
    assert natoms.tolist() == [len(atoms) for atoms in rows_of(tmp_path / "out").values()]


@pytest.mark.slow
def test_workers_equal_one_process(given, whole, tmp_path):
    """Each spends seconds on imports, so those that label are in the slow test below."""
    into, starts = Folder(tmp_path), open_starts(given / "starts")[0]
    solver = LBFGS(softest=10.0)
    settings = Settings(str(given / "esen.pt"), relaxer=Relaxer(0, solver, 0.001, 7), frames=4)
    assert walk(starts, settings, into, workers=2) == 5 and walk(starts, settings, into) == 0
    labeller = pickle.loads(pickle.dumps(Labeller(Reference(REFERENCE), into, retry=False)))
    assert sum(1 for start in starts for _ in labeller(into.file(start.name))) == 20
    pack(into)
    same(tmp_path, whole / "out")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_and_costs_one_label(whole, explore, tmp_path):
    log = tmp_path / "log"

    def run(kill_at):
        label = ("--calculator", REFERENCE, f"log={log}", f"kill_at={kill_at}")
        return explore(tmp_path / "out", "--workers", "2", label=label)

    (tmp_path / "kill").write_text("6")
    with pytest.raises(SystemExit, match="a worker process was killed, perhaps for want of memory"):
        run(f"{tmp_path / 'kill'}")
    (tmp_path / "kill").write_text("0")
    assert run(f"{tmp_path / 'kill'}") == 0
    same(tmp_path / "out", whole / "out")
    assert 21 <= calls(log) <= 22  # the other process may have been at a call too


def test_failures_are_counted_and_named_and_the_rest_goes_on(whole, explore, tmp_path, capsys):
    log = tmp_path / "log"
    label = ("--calculator", REFERENCE, f"log={log}", "fails=7", "spoils=6")
    assert explore(tmp_path / "out", label=label) == 0
    said = " ".join(capsys.readouterr().out.split())
    all_rows = rows_of(whole / "out")
    sound_rows = [sid for sid, atoms in all_rows.items() if len(atoms) == 8]
    assert list(rows_of(tmp_path / "out")) == sound_rows
    failed = len(all_rows) - len(sound_rows)
    assert f"frames on which the reference failed │ {failed} │" in said
    assert "row1_step0 has no label: SCFError: no self-consistency" in said
    assert "row2_step0 has no label: ValueError: forces are not finite" in said
    number = calls(log)
    explore(tmp_path / "out", label=label)
    assert calls(log) == number
    explore(tmp_path / "out", "--retry", label=label)
    assert calls(log) == number + failed
    # Programs that write files have a folder of each frame for them.
    places = {line.split()[1] for line in log.read_text().splitlines()}
    assert str(tmp_path / "out" / "work" / "calculations" / "row1_step0") in places
    assert len(places) == len(all_rows)


def test_large_forces_are_left_out_by_the_bound_of_the_packing(whole, tmp_path):
    largest = {
        sid: np.linalg.norm(atoms.get_forces(), axis=1).max()  # zero on fixed atoms
        for sid, atoms in rows_of(whole / "out").items()
    }
    bound = float(np.median(list(largest.values())))
    summary = pack(Folder(whole / "out"), bound)
    assert list(rows_of(whole / "out")) == [s for s, force in largest.items() if force < bound]
    assert summary.large == len(largest) - summary.packed == 10
    assert main(["pack", str(whole / "out")]) == 0
    assert list(rows_of(whole / "out")) == list(largest)


def test_only_wrong_leaves_out_what_ends_right(explore, tmp_path, capsys):
    """By forces of any size all relaxations have converged at their start."""
    words = ("--fmax", "1000", "--only", "wrong", "--basin")
    explore(tmp_path / "none", *words, "1000")
    assert "ended right, left out │ 5" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "none" / "data.aselmdb").exists()
    explore(tmp_path / "all", *words, "0")
    assert list(rows_of(tmp_path / "all")) == [f"row{i}_step0" for i in range(5)]
    with connect(tmp_path / "starts.db") as database:
        database.write(small.silicon(1)[0], data={"sid": "a"})
    with pytest.raises(SystemExit, match="no 'pos_relaxed' among its data"):
        explore(tmp_path / "x", *words, "1", starts=tmp_path / "starts.db")


def test_a_start_that_the_model_cannot_take_does_not_stop_the_others(explore, tmp_path, capsys):
    structures = small.silicon(2)
    alien = structures[0].copy()
    alien.numbers[0] = 110
    write(tmp_path / "starts.extxyz", [structures[0], alien, structures[1]])
    explore(tmp_path / "out", starts=tmp_path / "starts.extxyz")
    said = " ".join(capsys.readouterr().out.split())
    assert "bad_input │ 1" in said and "max_steps │ 2" in said
    names = {sid.rpartition("_")[0] for sid in rows_of(tmp_path / "out")}
    assert names == {"starts-0", "starts-2"}


def test_starts_of_one_name_are_told_apart_and_lose_what_is_not_theirs(tmp_path):
    structures = small.silicon(3)
    for atoms, sid in zip(structures, ("7", "7", "a/b c"), strict=True):
        atoms.info = {"sid": sid, "charge": 1, "note": "x"}
        atoms.new_array("dft_forces", atoms.positions)
    structures[2].info |= {"free": [0] + [1] * 5, "masses": np.arange(1.0, 7.0)}
    starts = named(structures)
    assert [start.name for start in starts] == ["7_row0", "7_row1", "a/b c"]
    assert all(start.atoms.info == {"charge": 1} for start in starts)
    assert not any("dft_forces" in start.atoms.arrays for start in starts)
    assert starts[2].atoms.constraints[0].index.tolist() == [0]
    assert starts[2].atoms.get_masses().tolist() == [1, 2, 3, 4, 5, 6]
    names = {Folder(tmp_path).file(name).name for name in ("a/b c", "a", "x" * 300, "x" * 301)}
    assert len(names) == 4 and "a%2Fb c.npz" in names and max(map(len, names)) < 200


def test_unreadable_starts_and_references(explore, tmp_path):
    (tmp_path / "notes.xyz").write_text("nothing\n")
    structure = small.silicon(1)[0]
    structure.positions[0] = np.nan
    write(tmp_path / "nan.extxyz", [structure, small.silicon(1)[0]])
    for starts, words, what in (
        ("notes.xyz", (), "notes.xyz: ASE cannot read it"),
        ("missing", (), "missing: no such file"),
        (
            "nan.extxyz",
            (),
            "1 of 2 rows cannot be used: .*frame 0, structure nan-0: start positions",
        ),
        ("nan.extxyz", ("--only", "wrong"), "have no targets, which --only wrong compares with"),
    ):
        with pytest.raises(SystemExit, match=what):
            explore(tmp_path / "out", *words, starts=tmp_path / starts)
    assert not (tmp_path / "out").exists()
    for label, what in (
        (
            ("tests.explore.reference.Nowhere",),
            "calculator tests.explore.reference.Nowhere: .*Nowhere",
        ),
        ((REFERENCE, "log"), "calculator option 'log': expected key=value"),
        ((REFERENCE, "lag=3"), "calculator .*Noted: .*unexpected keyword argument 'lag'"),
        (("builtins.dict",), "expected an ASE calculator or a file"),
    ):
        with pytest.raises(SystemExit, match=what):
            explore(tmp_path / "out", label=("--calculator", *label))
    with pytest.raises(SystemExit, match="nothing was explored into it"):
        main(["pack", str(tmp_path / "out")])


def test_damaged_records_are_named(whole, explore, tmp_path):
    explore(tmp_path / "out")
    file = Folder(tmp_path / "out").file("row3")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"row3\.npz: no complete record .*Delete it; the same"):
        explore(tmp_path / "out")
    file.unlink()
    explore(tmp_path / "out")
    same(tmp_path / "out", whole / "out")


def test_frames_are_even_distinct_and_of_this_world():
    assert evenly(61, 6) == [0, 12, 24, 36, 48, 60]
    assert evenly(3, 6) == [0, 1, 2] and evenly(0, 6) == [] and evenly(9, 1) == [0]
    (atoms,) = small.silicon(1, fixed=(0,))
    steps = [0.0, 0.5, 0.505, 0.9, 0.899]
    places = [atoms.positions + np.array(shift) for shift in steps]
    places[1][:] = places[2] - 0.002  # the end and what is near it: the end stays
    assert distinct(atoms, places, 0.02) == [0, 1, 4]
    assert distinct(atoms, places, 0.0) == [0, 1, 2, 3, 4]
    across = [atoms.positions, atoms.positions + atoms.cell.array[0]]
    assert distinct(atoms, across, 0.02) == [0]
    fixed_only = [atoms.positions, atoms.positions.copy()]
    fixed_only[1][0] += 0.3
    assert distinct(atoms, fixed_only, 0.02) == [0]
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])
    assert distinct(molecule, [molecule.positions, molecule.positions + 0.1], 0.02) == [0, 1]
    good = (atoms.positions, np.ones_like(atoms.positions))
    path = [good, good, (good[0], good[1] * 1e4), good]
    assert len(sound(path)) == 2 and len(sound([(good[0] * np.nan, good[1])])) == 0


def test_written_frames_have_no_labels(explore, tmp_path):
    explore(tmp_path / "out", label=("--write", tmp_path / "frames.extxyz"))
    frames = read(tmp_path / "frames.extxyz", ":")
    assert len(frames) == 20 and all(frame.calc is None for frame in frames)
    assert {key for frame in frames for key in frame.arrays} == {"numbers", "positions"}
    assert not (tmp_path / "out" / "data.aselmdb").exists()
