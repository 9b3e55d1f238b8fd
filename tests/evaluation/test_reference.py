"""Reference forces against ASE's own potentials."""

import logging

import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, CalculatorError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.evaluation.reference import AskedReference, ReferenceFile, ask
from tests.records import RECORD


def slab():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    atoms.rattle(0.1, seed=0)
    return atoms


def test_force_is_the_largest_on_a_free_atom():
    atoms = slab()
    trial = atoms.copy()
    trial.calc = EMT()
    lengths = np.linalg.norm(trial.get_forces(), axis=1)
    assert ask(atoms, EMT()).force == pytest.approx(lengths.max())
    held = np.argsort(lengths)[-2:]
    atoms.set_constraint(FixAtoms(held))
    assert ask(atoms, EMT()).force == pytest.approx(np.sort(lengths)[-3])
    assert atoms.calc is None
    (record,) = AskedReference(EMT()).judge([RECORD], [atoms], [slab()])
    assert record.reference_force == pytest.approx(np.sort(lengths)[-3])
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    assert ask(atoms, EMT()).force == 0


class Failing(Calculator):
    implemented_properties = ("forces",)

    def calculate(self, *args, **kwargs):
        raise CalculatorError("SCF did not converge")


class Forces(Calculator):
    implemented_properties = ("forces",)

    def calculate(self, atoms=None, *args, **kwargs):
        self.results = {"forces": np.ones((len(atoms), 3))}


def test_energies_are_above_the_target_s():
    """EMT's own, each target asked once."""
    asked = []

    class Counting(EMT):
        def calculate(self, *args, **kwargs):
            asked.append(args)
            super().calculate(*args, **kwargs)

    target, ends = fcc111("Cu", (2, 2, 3), vacuum=5.0), [slab(), slab()]
    ends[1].rattle(0.2, seed=3)
    reference = AskedReference(Counting())
    for atoms in ends:
        (record,) = reference.judge([RECORD], [atoms], [target])
        energies = []
        for each in (atoms, target):
            each.calc = EMT()
            energies.append(each.get_potential_energy())
            each.calc = None
        assert record.reference_energy == pytest.approx(energies[0] - energies[1])
    assert len(asked) == 3
    (record,) = AskedReference(Forces()).judge([RECORD], [ends[0]], [target])
    assert record.reference_energy is None and record.reference_force == pytest.approx(np.sqrt(3))
    (record,) = AskedReference(Failing()).judge([RECORD], [ends[0]], [target])
    assert record.reference_energy == np.inf


def test_a_calculator_that_has_failed_begins_anew():
    """EMT would go on half prepared, and raise something else or not at all."""
    odd, emt = slab(), EMT()
    odd.symbols[0] = "Si"
    failures = [ask(odd, emt, Exception).failure for _ in range(2)]
    assert failures == ["NotImplementedError: No EMT-potential for Si"] * 2
    assert ask(slab(), emt).force == pytest.approx(ask(slab(), EMT()).force)


def test_failures_are_infinite_and_named(caplog):
    atoms = slab()
    atoms.info["sid"] = "slab-17"
    with caplog.at_level(logging.WARNING):
        assert ask(atoms, Failing()).force == np.inf
    assert "slab-17" in caplog.text and "SCF" in caplog.text
    atoms.positions[0] = np.nan
    assert ask(atoms, EMT()).force == np.inf


@pytest.mark.parametrize("sid", ["slab-17", "123", "007", "1e5"])
def test_file_gives_structures_back_by_name(tmp_path, sid):
    atoms = slab()
    forces = np.zeros((len(atoms), 3))
    forces[0], forces[1] = (0, 3, 4), (0, 0, 1)
    atoms.calc = SinglePointCalculator(atoms, forces=forces)
    atoms.info["sid"] = sid
    failed = slab()
    failed.info["sid"] = "failed"
    ase.io.write(tmp_path / "dft.extxyz", [failed, atoms])
    file = ReferenceFile(tmp_path / "dft.extxyz")
    found = file.frame(Label(sid, 0), atoms.numbers)
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-7)
    free = np.ones(len(atoms), dtype=bool)
    assert file.force(found, free) == pytest.approx(5)
    free[0] = False
    assert file.force(found, free) == pytest.approx(1)
    assert file.force(file.frame(Label("failed", 1), failed.numbers), free) == np.inf
    with pytest.raises(ValueError, match=r"no structure other.*failed"):
        file.frame(Label("other", 0), atoms.numbers)
    with pytest.raises(ValueError, match="other atoms"):
        file.frame(Label(sid, 0), [*atoms.numbers[:-1], 1])


def test_rows_of_one_name_have_frames_of_their_own(tmp_path):
    """As predict writes them; a single frame could be of either."""
    frames = [slab(), slab(), slab()]
    for shift, (atoms, sid, row) in enumerate(zip(frames, "aab", (4, 7, 5), strict=True)):
        atoms.positions += shift
        atoms.info |= {"sid": sid, "row": row}
    labels = [Label("a", 4), Label("b", 5), Label("a", 7)]
    ase.io.write(tmp_path / "dft.extxyz", frames)
    file = ReferenceFile(tmp_path / "dft.extxyz")
    file.require_own_frames(labels)
    for label, atoms in zip(labels, (frames[0], frames[2], frames[1]), strict=True):
        found = file.frame(label, atoms.numbers)
        np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-7)
    with pytest.raises(ValueError, match=r"no structure a \(row 9\)"):
        file.frame(Label("a", 9), frames[0].numbers)

    ase.io.write(tmp_path / "one.extxyz", frames[1:])
    file = ReferenceFile(tmp_path / "one.extxyz")
    file.require_own_frames(labels[:2])
    assert file.frame(Label("a", 4), frames[0].numbers) is not None  # the data set was made anew
    with pytest.raises(ValueError, match=r"a is there once, and rows 4 and 7 of the data set"):
        file.require_own_frames(labels)


def test_unusable_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ReferenceFile(tmp_path / "nowhere.extxyz")
    one = bulk("Si")
    ase.io.write(tmp_path / "unnamed.extxyz", [one])
    with pytest.raises(ValueError, match="frame 0 has no sid"):
        ReferenceFile(tmp_path / "unnamed.extxyz")
    one.info["sid"] = "7"
    two = bulk("Si")
    two.info["sid"] = "007"
    ase.io.write(tmp_path / "twice.extxyz", [one, two])
    with pytest.raises(ValueError, match="7 is there twice"):
        ReferenceFile(tmp_path / "twice.extxyz")
