"""Silicon defects relaxed by Quantum ESPRESSO: what is asked of it, and what becomes of its answers."""

import gzip
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed

from tests.data.scripts import imported
from tests.data.springs import Springs

ROOT = Path(__file__).parents[2]
MOVE = 0.07  # Angstrom, from each start to the minimum of the stand-in

# Of ``pw.x``: answers over the socket with springs, to places that are not far.
STAND_IN = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
import ase.io
from ase.calculators.socketio import SocketClient
from tests.data.springs import Springs
assert sys.argv[1:3] == ["-in", "espresso.pwi"] and sys.argv[3] == "--ipi"
atoms = ase.io.read("espresso.pwi", format="espresso-in")
places = atoms.positions.copy()
places[0] += {MOVE}
atoms.calc = Springs(places)
print("asked")
SocketClient(unixsocket=sys.argv[4].removesuffix(":UNIX")).run(atoms)
"""


@pytest.fixture(scope="module")
def scripts():
    with imported("si", "defects", "plan", "generate", "dft") as modules:
        yield modules


def start_in(scripts, folder, job):
    """A relaxation to do, of a job."""
    file = scripts.generate.file_of(job, folder)
    return scripts.relaxing.Start(file, partial(scripts.dft.start_of, job), job.frames)


@pytest.fixture
def settings(scripts, tmp_path, monkeypatch):
    """With the stand-in in place of the program, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    program, pseudopotential = tmp_path / "pw", tmp_path / "Si.UPF.gz"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    pseudopotential.write_bytes(gzip.compress(b"silicon"))
    return scripts.dft.Settings(str(program), pseudopotential, tmp_path / "work")


def test_starts_are_small_and_of_silicon(scripts):
    jobs = scripts.dft.jobs()
    assert len({job.sid for job in jobs}) == len(jobs) == 21
    for job in jobs:
        start = scripts.dft.start_of(job)
        assert set(start.symbols) == {"Si"} and 14 <= len(start) <= 17
        apart = start.get_all_distances(mic=True)[np.triu_indices(len(start), 1)]
        assert apart.min() > scripts.defects.CLOSEST
        np.testing.assert_array_equal(start.positions, scripts.dft.start_of(job).positions)
        lengths = start.cell.lengths()
        np.testing.assert_allclose(lengths, scripts.defects.LATTICE * np.sqrt(2), rtol=1e-12)


def test_answers_become_a_record(scripts, settings, tmp_path):
    job = scripts.dft.jobs()[0]
    scripts.dft.relax_one(start_in(scripts, tmp_path, job), settings)
    folder = settings.work / job.sid
    assert (folder / "Si.UPF").read_bytes() == b"silicon"
    asked = (folder / "espresso.pwi").read_text()
    assert "2 2 2  1 1 1" in asked and "Si.UPF" in asked and "18.5" in asked
    assert (folder / "espresso.pwo").read_text() == "asked\n"  # once: the program stays open
    record = scripts.records.load(tmp_path / f"{job.sid}.npz")
    start = scripts.dft.start_of(job)
    assert record.max_forces[0] > 0.1 and record.max_forces[-1] < scripts.dft.FMAX
    np.testing.assert_allclose(record.frames[0].positions, start.positions, atol=2e-5)
    moved = record.frames[-1].positions - start.positions
    moved -= moved[1:].mean(0)  # the centroid stays, so that the others go back a little
    np.testing.assert_allclose(moved[0], MOVE, atol=0.01)
    np.testing.assert_allclose(moved[1:], 0.0, atol=0.01)


def test_an_end_is_checked_on_another_grid(scripts, settings, tmp_path, capsys):
    job = scripts.dft.jobs()[0]
    scripts.dft.relax_one(start_in(scripts, tmp_path, job), settings)
    scripts.dft.check([job.sid], 4, 30.0, tmp_path, settings)
    # The stand-in moves its minimum on from wherever it is opened: springs of 2 eV/Angstrom^2.
    then, now = capsys.readouterr().out.removeprefix(f"{job.sid}: ").split(" eV/Angstrom, now ")
    assert float(then) < scripts.dft.FMAX
    assert float(now) == pytest.approx(2 * MOVE * np.sqrt(3), abs=1e-3)
    asked = (settings.work / f"{job.sid}_4_30" / "espresso.pwi").read_text()
    assert "4 4 4  1 1 1" in asked and "30.0" in asked and "240.0" in asked
    with pytest.raises(ValueError, match=r"no_such\.npz is no complete record"):
        scripts.dft.check(["no_such"], 4, 30.0, tmp_path, settings)


def test_a_failed_one_is_named_and_the_others_are_done(scripts, settings, tmp_path, monkeypatch):
    first, *_, last = scripts.dft.jobs()
    monkeypatch.setattr(scripts.dft, "jobs", lambda: [first, last])
    monkeypatch.setattr(scripts.relaxing, "over", lambda one, todo, _: [one(job) for job in todo])
    whole = scripts.dft.path_of

    def fails_for_the_first(start, asked):
        if len(start) == len(scripts.dft.start_of(first)):
            raise CalculationFailed("convergence NOT achieved")
        return whole(start, asked)

    monkeypatch.setattr(scripts.dft, "path_of", fails_for_the_first)
    with pytest.raises(
        SystemExit, match=rf"1 of 2 relaxations failed:\n{first.sid}: .*NOT achieved"
    ):
        scripts.dft.relax(1, tmp_path / "relaxed", settings)
    assert [file.stem for file in (tmp_path / "relaxed").iterdir()] == [last.sid]
    monkeypatch.setattr(scripts.dft, "path_of", whole)
    scripts.dft.relax(1, tmp_path / "relaxed", settings)  # what is left
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "relaxed").iterdir()}
    assert {file.stem for file in files} == {first.sid, last.sid}
    scripts.dft.relax(1, tmp_path / "relaxed", settings)  # nothing is
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "relaxed").iterdir()}


def test_what_does_not_converge_is_said(scripts, monkeypatch):
    monkeypatch.setattr(scripts.dft, "MAX_STEPS", 1)
    start = scripts.dft.start_of(scripts.dft.jobs()[0])
    with pytest.raises(RuntimeError, match="max_steps"):
        scripts.dft.path_of(start, Springs(start.positions + MOVE * np.eye(len(start), 3)))


@pytest.mark.skipif(not shutil.which("pw.x"), reason="Quantum ESPRESSO is not installed")
def test_the_program_understands_what_it_is_asked(scripts, tmp_path, monkeypatch):
    if not scripts.dft.PSEUDOPOTENTIAL.exists():
        pytest.skip("quantum-espresso-data is not installed")
    monkeypatch.chdir(tmp_path)
    crystal = bulk("Si", "diamond", a=scripts.defects.LATTICE)
    moved = crystal.copy()
    moved.positions[1] += [0.1, 0.05, -0.02]
    monkeypatch.setattr(scripts.dft, "start_of", lambda job: moved)
    settings = scripts.dft.Settings("pw.x", scripts.dft.PSEUDOPOTENTIAL, tmp_path / "work")
    job = scripts.dft.jobs()[0]
    scripts.dft.relax_one(start_in(scripts, tmp_path, job), settings)
    end = scripts.records.load(tmp_path / f"{job.sid}.npz").frames[-1]
    bond = end.positions[1] - end.positions[0]
    # Along the diagonal, as in the crystal; with one k so small a cell has a bond of its own length.
    np.testing.assert_allclose(bond, bond.mean(), rtol=0, atol=5e-3)
    np.testing.assert_allclose(bond, crystal.positions[1], rtol=0, atol=0.05)
