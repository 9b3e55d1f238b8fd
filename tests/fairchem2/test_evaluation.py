"""The table's other rows: ASE's optimizers, files, reference calculators."""

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

from fairchem_gdeq.evaluation import ase_baselines
from fairchem_gdeq.evaluation.ase_baselines import relax_with_ase
from fairchem_gdeq.evaluation.reference import AskedReference, ReferenceFile
from fairchem_gdeq.evaluation.rows import (
    baseline_rows,
    file_row,
    open_reference,
    unrelaxed_row,
    with_reference,
)
from fairchem_gdeq.fairchem2.base import load_base
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.task import IS2RS, Relaxer
from fairchem_gdeq.testing.fairchem2 import small

RELAXER = Relaxer(horizon=2, fmax=0.05, max_steps=10)


def example(double=False, fixed=(0, 2)):
    structures = small.silicon(3, fixed=fixed)
    data = small.batch(structures, double)
    data.pos_relaxed = data.pos + 0.02
    return structures, data


def on(data):
    """The small eSEN on a batch."""
    return HydraForceField.unfrozen(small.model("esen"), small.tasks(), data)


class Plain(Calculator):
    """FAIRChemCalculator with the energy that ASE's optimizers log and a model may not have."""

    implemented_properties = ("energy", "forces")

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def calculate(self, atoms=None, properties=None, system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": self.inner.get_property("forces", self.atoms)}


@pytest.mark.parametrize(("name", "optimizer"), [("ase_fire", FIRE), ("ase_lbfgs", LBFGS)])
def test_ase_rows_are_ase_on_fairchems_calculator(tmp_path, name, optimizer):
    # In double: with single precision, twelve steps of ASE's LBFGS tell one processor from another.
    small.checkpoint(tmp_path / "esen.pt")
    double = InferenceSettings(base_precision_dtype=torch.float64)
    unit = load_predict_unit(tmp_path / "esen.pt", device="cpu", inference_settings=double)
    model = load_base(str(tmp_path / "esen.pt")).double()
    tasks = small.tasks()
    tasks[0].normalizer.rmsd.fill_(1.0)
    structures, data = example(double=True)
    records, positions = relax_with_ase(
        name, IS2RS(relaxer=RELAXER), HydraForceField.unfrozen(model, tasks, data), data
    )
    ends = positions.split(data.natoms.tolist())
    for atoms, end, record in zip(structures, ends, records, strict=True):
        atoms.calc = Plain(FAIRChemCalculator(unit, task_name="si"))
        run = optimizer(atoms, logfile=None)
        assert run.run(0.05, 12) == record.converged
        assert record.evaluations == run.nsteps + 1
        np.testing.assert_allclose(end.numpy(), atoms.positions, atol=1e-6)
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        assert record.residual == pytest.approx(force, abs=1e-5)
    moved = (positions - data.pos).norm(dim=-1)
    assert (moved[data.fixed == 1] == 0).all() and moved.max() > 0.02


def test_ase_rows_mark_what_diverges(monkeypatch):
    _, data = example(double=True)
    monkeypatch.setattr(ase_baselines, "MAX_FORCE", 1e-9)
    records, positions = relax_with_ase("ase_fire", IS2RS(relaxer=RELAXER), on(data), data)
    assert all(r.diverged and not r.converged and r.evaluations == 1 for r in records)
    torch.testing.assert_close(positions, data.pos)


def test_baselines_by_name():
    rows = baseline_rows(["ase_lbfgs", "ase_fire"], IS2RS())
    assert list(rows) == ["ASE LBFGS", "ASE FIRE"]
    with pytest.raises(ValueError, match=r"newton.*ase_fire"):
        baseline_rows(["newton"], IS2RS())


def test_a_calculator_is_asked_at_the_structures_of_a_row():
    structures, data = example(double=True)
    asked = AskedReference(LennardJones(sigma=2.0, rc=4.0))
    row = with_reference(unrelaxed_row(IS2RS()), asked)
    records, positions = row(on(data), data)
    torch.testing.assert_close(positions, data.pos)
    for record, atoms in zip(records, structures, strict=True):
        atoms.calc = LennardJones(sigma=2.0, rc=4.0)
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        assert record.reference_force == pytest.approx(force)
        assert record.leaderboard_mae == pytest.approx(0.02) and record.evaluations == 0


def test_a_file_is_a_row_of_its_own(tmp_path):
    """Wrapped by another program and in another order, without the constraints."""
    structures, data = example(double=True)
    for i, atoms in enumerate(structures):
        atoms.set_constraint()
        atoms.info["sid"] = f"s{i}"
        atoms.positions = data.pos_relaxed[data.batch == i].numpy() + 0.01
        atoms.positions[1] += atoms.cell[0]
        forces = np.full((len(atoms), 3), 0.03 * i)
        forces[[0, 2]] = 9.0  # these are held
        atoms.calc = SinglePointCalculator(atoms, forces=forces)
    ase.io.write(tmp_path / "dft.extxyz", structures[::-1])
    title, row = file_row(IS2RS(), ReferenceFile(tmp_path / "dft.extxyz"))
    assert title == "file dft.extxyz"
    records, positions = row(on(data), data)
    torch.testing.assert_close(positions, data.pos_relaxed + 0.01, atol=1e-7, rtol=0)
    forces = [r.reference_force for r in records]
    assert forces == pytest.approx([0, 0.03 * 3**0.5, 0.06 * 3**0.5])
    assert [r.leaderboard_mae for r in records] == pytest.approx([0.01] * 3)


def test_references_of_a_config(tmp_path):
    calculator = LennardJones()
    assert open_reference(None) is None and open_reference(calculator) is calculator
    atoms = small.silicon(1)[0]
    atoms.info["sid"] = "a"
    ase.io.write(tmp_path / "a.extxyz", atoms)
    assert isinstance(open_reference(str(tmp_path / "a.extxyz")), ReferenceFile)
    with pytest.raises(TypeError, match="calculator or a file"):
        open_reference(3)


def test_fixed_atoms_reach_the_calculator():
    """What ``with_reference`` hands out carries the batch's fixed atoms."""
    _, data = example(double=True)
    for atoms in data.to_ase():
        (constraint,) = atoms.constraints
        assert isinstance(constraint, FixAtoms) and constraint.index.tolist() == [0, 2]
