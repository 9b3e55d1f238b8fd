"""Silicon defects relaxed by Quantum ESPRESSO: what is asked of it, and what becomes of its answer."""

import gzip
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

FOLDER = Path(__file__).parents[2] / "data" / "si"
ANSWER = Path(__file__).with_name("pw_relax.out.gz")  # of two atoms, six structures


@pytest.fixture(scope="module")
def scripts():
    own, shared = ("defects", "plan", "generate", "dft"), ("records",)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (FOLDER.parent, FOLDER):
            patch.syspath_prepend(folder)
        for name in own:  # data/slabs has modules of the same names
            sys.modules.pop(name, None)
        yield SimpleNamespace(**{name: import_module(name) for name in own + shared})


@pytest.fixture
def answered(scripts, tmp_path):
    """Settings with a program that gives ``answer.gz``, and counts how often it is asked."""
    program = tmp_path / "pw"
    program.write_text(f"#!/bin/sh\necho >> {tmp_path}/asked\ngunzip -c {tmp_path}/answer.gz\n")
    program.chmod(0o755)
    shutil.copy(ANSWER, tmp_path / "answer.gz")
    pseudopotential = tmp_path / "Si.UPF.gz"
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


def test_an_answer_becomes_a_record(scripts, answered, tmp_path):
    job = scripts.dft.jobs()[0]
    assert scripts.dft.relax_one(job, tmp_path, answered) is None
    folder = answered.work / job.sid
    assert (folder / "Si.UPF").read_bytes() == b"silicon"
    asked = (folder / "pw.in").read_text()
    assert "'relax'" in asked and "2 2 2  1 1 1" in asked and "Si.UPF" in asked
    record = scripts.records.load(tmp_path / f"{job.sid}.npz")
    assert record.steps == [0, 1, 2, 3, 4, 5]
    assert record.max_forces[0] > 1.5 and record.max_forces[-1] < scripts.dft.FMAX
    np.testing.assert_allclose(bond(record.frames[0]), [1.46575, 1.41575, 1.34575], atol=2e-5)
    centroids = np.array([frame.positions.mean(0) for frame in record.frames])
    np.testing.assert_allclose(centroids, np.broadcast_to(centroids[0], (6, 3)), atol=2e-5)
    assert record.frames[-1].get_potential_energy() < record.frames[0].get_potential_energy()


def test_a_failed_one_is_named_and_the_others_are_done(scripts, answered, tmp_path, monkeypatch):
    whole = gzip.decompress(ANSWER.read_bytes()).decode()
    cut = whole[: whole.index("End of BFGS")]
    (tmp_path / "answer.gz").write_bytes(gzip.compress(cut.encode()))
    first, *_, last = scripts.dft.jobs()
    message = scripts.dft.relax_one(last, tmp_path, answered)
    assert message.startswith(f"{last.sid}: ") and "pw.out" in message
    assert not list(tmp_path.glob("*.npz"))
    monkeypatch.setattr(scripts.dft, "jobs", lambda: [first, last])
    monkeypatch.setattr(scripts.dft, "over", lambda one, todo, *_: [one(job) for job in todo])
    with pytest.raises(SystemExit, match=rf"2 of 2 relaxations failed:\n{first.sid}: "):
        scripts.dft.relax(1, tmp_path, answered)
    shutil.copy(ANSWER, tmp_path / "answer.gz")
    scripts.dft.relax(1, tmp_path, answered)
    count = len((tmp_path / "asked").read_text())
    scripts.dft.relax(1, tmp_path, answered)  # nothing is left to do
    assert len((tmp_path / "asked").read_text()) == count == 5


@pytest.mark.skipif(not shutil.which("pw.x"), reason="Quantum ESPRESSO is not installed")
def test_it_asks_what_the_program_understands(scripts, answered, tmp_path, monkeypatch):
    if not scripts.dft.PSEUDOPOTENTIAL.exists():
        pytest.skip("quantum-espresso-data is not installed")
    moved = bulk("Si", "diamond", a=scripts.defects.LATTICE)
    moved.positions[1] += [0.1, 0.05, -0.02]
    monkeypatch.setattr(scripts.dft, "start_of", lambda job: moved)
    settings = scripts.dft.Settings("pw.x", scripts.dft.PSEUDOPOTENTIAL, tmp_path / "work")
    job = scripts.dft.jobs()[0]
    assert scripts.dft.relax_one(job, tmp_path, settings) is None
    found = scripts.records.load(tmp_path / f"{job.sid}.npz").frames
    with gzip.open(ANSWER, "rt") as stream:  # of the same two atoms
        stored = read(stream, index=":", format="espresso-out")
    assert len(found) == len(stored)
    for frame, other in zip(found, stored, strict=True):
        np.testing.assert_allclose(bond(frame), bond(other), rtol=0, atol=2e-3)
        np.testing.assert_allclose(frame.get_forces(), other.get_forces(), rtol=0, atol=0.02)


def bond(atoms):
    return atoms.positions[1] - atoms.positions[0]
