"""Records of relaxations: what they keep, to which precision, and what counts as complete."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

sys.path.append(str(Path(__file__).parents[2] / "data"))
import records
import relaxing
import sevennet


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.15, seed=3)
    del atoms[5]
    return atoms


def copper_surface() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.5, "ontop")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.pbc = True
    return atoms


def broken() -> Atoms:
    raise ValueError("no such structure")


def relaxed(atoms: Atoms) -> list[Atoms]:
    atoms.calc = EMT()
    return sevennet.relax(atoms, fmax=0.01, max_steps=200)


def starts(folder: Path, *builders) -> list[relaxing.Start]:
    return [relaxing.Start(folder / f"{b.__name__}.npz", b, 5) for b in builders]


@pytest.mark.parametrize("build", [copper, copper_surface])
def test_a_record_holds_the_path_to_its_precision(build, tmp_path):
    path = relaxed(build())
    records.save(tmp_path / "one.npz", path, 6)
    record = records.load(tmp_path / "one.npz")
    assert 2 < len(record.frames) <= 6
    assert record.steps[0] == 0 and record.steps[-1] == len(path) - 1
    for frame, step, largest in zip(record.frames, record.steps, record.max_forces, strict=True):
        original = path[step]
        assert np.abs(frame.positions - original.positions).max() <= 0.51e-5
        assert np.abs(frame.get_forces() - original.get_forces()).max() <= 0.51e-3
        assert abs(frame.get_potential_energy() - original.get_potential_energy()) <= 0.51e-5
        # Whether it converged is not left to rounded forces.
        exact = max(np.sqrt((force**2).sum()) for force in original.get_forces())
        assert largest == pytest.approx(exact, rel=1e-12)
        assert (frame.numbers == original.numbers).all() and frame.pbc.all()
        assert (frame.get_tags() == original.get_tags()).all()
        np.testing.assert_array_equal(frame.cell.array, original.cell.array)
        fixed = [c.index.tolist() for c in frame.constraints]
        assert fixed == [c.index.tolist() for c in original.constraints]


def test_no_frames_means_start_and_end(tmp_path):
    path = relaxed(copper())
    records.save(tmp_path / "one.npz", path, 0)
    assert records.load(tmp_path / "one.npz").steps == [0, len(path) - 1]


def test_a_cut_off_record_is_not_finished_and_is_named(tmp_path):
    whole, cut = tmp_path / "whole.npz", tmp_path / "cut.npz"
    records.save(whole, relaxed(copper()), 4)
    assert records.finished(whole) and not list(tmp_path.glob("*.partial"))
    for part in (0.0, 0.5, 0.99):
        cut.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
        assert not records.finished(cut)
        with pytest.raises(ValueError, match=r"cut\.npz is no complete record .* delete it"):
            records.load(cut)
    assert not records.finished(tmp_path / "absent.npz")


def test_a_break_while_writing_leaves_no_record(tmp_path, monkeypatch):
    def stop(stream, **arrays):
        stream.write(b"PK half")
        raise KeyboardInterrupt

    path = relaxed(copper())
    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        records.save(tmp_path / "one.npz", path, 4)
    assert not records.finished(tmp_path / "one.npz")
    monkeypatch.undo()
    records.save(tmp_path / "one.npz", path, 4)
    assert records.finished(tmp_path / "one.npz")


def test_going_on_does_what_is_missing_and_nothing_else(tmp_path):
    """With real processes: one start is done, one was cut off, one is new, one cannot be built."""
    done, cut, new = starts(tmp_path, copper, copper_surface, broken)
    records.save(done.file, relaxed(copper()), 5)
    before = done.file.read_bytes(), done.file.stat().st_mtime_ns
    cut.file.write_bytes(before[0][:100])
    with pytest.raises(SystemExit, match=r"1 of 2 .* failed:\nbroken: ValueError: no such struct"):
        sevennet.relax_all([new, done, cut], workers=1, calculator=EMT)
    assert (done.file.read_bytes(), done.file.stat().st_mtime_ns) == before
    assert not new.file.exists()
    again = records.load(cut.file)
    assert again.max_forces[-1] < 0.01
    expected = relaxed(copper_surface())[-1]
    np.testing.assert_allclose(again.frames[-1].positions, expected.positions, atol=1e-5)


def test_a_crystal_without_fixed_atoms_does_not_drift(tmp_path):
    """A constant push on all atoms moves it as a whole; the record takes that out again."""

    class Pushed(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces"] = self.results["forces"] + np.array([0.008, 0.0, 0.0])

    (start,) = starts(tmp_path, copper)
    sevennet.relax_one(start, Pushed, fmax=0.01, max_steps=100)
    record = records.load(start.file)
    centres = [frame.positions.mean(0) for frame in record.frames]
    assert np.abs(np.diff(centres, axis=0)).max() < 1e-5
    free = copper()
    free.calc = Pushed()
    drifted = sevennet.relax(free, fmax=0.01, max_steps=100)
    assert np.linalg.norm(drifted[-1].positions.mean(0) - drifted[0].positions.mean(0)) > 1e-3
