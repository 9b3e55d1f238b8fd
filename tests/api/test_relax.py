"""``fairchem_gdeq.relax`` against ASE, and what it does with structures of every kind."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane
from ase.db import connect
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

import fairchem_gdeq as gdeq
from fairchem_gdeq.testing.fairchem2 import small

SILICON = Path(__file__).parents[2] / "data" / "si"


@pytest.fixture(scope="module")
def potential():
    """Of double precision, so that paths can be compared."""
    return gdeq.load_potential(small.model("esen"), tasks=small.tasks())


def relax(*args, **kwargs):
    return gdeq.relax(*args, progress=False, **kwargs)


def test_importing_the_package_is_cheap():
    code = "import sys, fairchem_gdeq as g; g.__version__; print({'torch', 'fairchem'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_function_and_the_package_of_one_name():
    """The attribute is both, in whichever way it is imported, and editors see the function."""
    code = (
        "import fairchem_gdeq as g; import fairchem_gdeq.relax as r; "
        "from fairchem_gdeq.relax import GDEQ; "
        "from fairchem_gdeq import relax; assert relax is r is g.relax and g.GDEQ is GDEQ; "
        "import inspect; from fairchem_gdeq.api import relax as function; "
        "assert inspect.signature(relax) == inspect.signature(function); print(callable(relax))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_type_checkers_see_the_names_that_there_are():
    """What is imported for them alone is what ``__getattr__`` finds."""
    source = Path(gdeq.__file__).read_text()
    (block,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.ImportFrom)
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*seen, "__version__"} == {*gdeq.__all__} == {*gdeq.__all__} & {*dir(gdeq)}
    for name, place in seen.items():
        assert name == "relax" or getattr(gdeq, name) is getattr(import_module(place), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = gdeq.nothing


def test_relaxations_are_those_of_ase():
    """The silicon base on a structure of its data, in double precision, by both.

    FIRE step for step: with fixed atoms nothing is taken out of the forces, so both see the same.
    The default, L-BFGS, by its end.
    """
    base = gdeq.load_potential(SILICON / "base" / "esen.pt", device="cpu")
    base.model.double()
    with connect(SILICON / "val" / "data.aselmdb", type="aselmdb") as database:
        start = database.get(1).toatoms()
    start.set_constraint(FixAtoms([0, 1]))
    own = start.copy()
    own.calc = base.ase_calculator()
    fire = FIRE(own, logfile=None)
    assert fire.run(fmax=0.05, steps=200)
    found = relax(start, base, solver="fire", fmax=0.05, max_steps=200, forces=True)
    assert found.codes == [gdeq.Code.CONVERGED] and found.residual[0] < 0.05
    assert own.calc.evaluations == found.evaluations[0] > 20
    np.testing.assert_allclose(found.atoms[0].positions, own.positions, atol=1e-9)
    np.testing.assert_allclose(found.atoms[0].get_forces(), own.get_forces(), atol=1e-8)

    assert fire.run(fmax=0.01, steps=300)
    default = relax(start, base, fmax=0.01)
    assert default.converged.all()
    np.testing.assert_allclose(default.atoms[0].positions, own.positions, atol=0.03)


def test_inputs_stay_and_fixed_atoms_stay(potential):
    (atoms,) = small.silicon(1, fixed=(2, 5))
    before = atoms.copy()
    found = relax(atoms, potential, max_steps=5)
    assert len(found) == 1 and found.codes == [gdeq.Code.MAX_STEPS]
    (end,) = found.atoms
    assert atoms == before and end is not atoms
    np.testing.assert_array_equal(end.positions[[2, 5]], before.positions[[2, 5]])
    assert np.abs(end.positions - before.positions).max() > 1e-3
    assert isinstance(end.constraints[0], FixAtoms)


def test_wrapped_equals_unwrapped(potential):
    (atoms,) = small.silicon(1, fixed=(0,))
    away = atoms.copy()
    away.positions += np.array([[1, -2, 3]] * len(atoms)) @ atoms.cell.array
    away.positions[3] -= atoms.cell.array[0]
    ends = [relax(each, potential, max_steps=8).atoms[0].positions for each in (atoms, away)]
    moves = ends[0] - atoms.positions, ends[1] - away.positions
    assert np.abs(moves[0]).max() > 1e-3
    np.testing.assert_allclose(*moves, atol=1e-6)


def test_no_structures_is_no_relaxations(potential):
    found = relax([], potential, forces=True)
    assert found.atoms == [] and found.converged.shape == (0,) and "none" in repr(found)


def test_a_bad_structure_does_not_spoil_the_others(potential):
    good = small.silicon(2)
    nan, flat, bound, alien = (good[0].copy() for _ in range(4))
    nan.positions[0] = np.nan
    flat.cell[2] = 0.0
    bound.set_constraint(FixBondLength(0, 1))
    alien.numbers[0] = 110
    given = [nan, good[0], flat, Atoms(), bound, good[1], alien]
    found = relax(given, potential, max_steps=3, forces=True)
    bad, max_steps = gdeq.Code.BAD_INPUT, gdeq.Code.MAX_STEPS
    assert found.codes == [bad, max_steps, bad, bad, bad, max_steps, bad]
    for index, word in ((0, "NaN"), (2, "volume"), (3, "no atoms"), (4, "FixBondLength")):
        assert f"structure {index}" in found.reasons[index] and word in found.reasons[index]
    assert "elements up to 99" in found.reasons[6]
    alone = relax(good, potential, max_steps=3)
    for index, k in ((1, 0), (5, 1)):
        np.testing.assert_allclose(found.atoms[index].positions, alone.atoms[k].positions)
    assert found.atoms[6] == alien and np.isnan(found.residual[6]) and found.evaluations[6] == 0


def test_what_a_structure_says_of_itself_is_kept_or_refused(potential):
    """Atoms that are held in all directions stay; one that would be dropped is named, a name too."""
    held, plane, heavy, unnamed, words = (small.silicon(1)[0] for _ in range(5))
    held.set_constraint(FixCartesian([2, 5]))
    plane.set_constraint(FixedPlane([0], (0, 0, 1)))
    heavy.info["masses"] = np.full(8, np.inf)
    unnamed.info["sid"] = "a\nb"
    words.info["free"] = ["no"] * 8
    found = relax([held, plane, heavy, unnamed, words], potential, max_steps=8)
    assert found.codes == [gdeq.Code.MAX_STEPS] + [gdeq.Code.BAD_INPUT] * 4
    said = ("FixedPlane", "mass of inf amu", "its name (sid)", "free: expected real numbers")
    for index, word in enumerate(said, 1):
        assert found.reasons[index].startswith(f"structure {index}: ")
        assert word in found.reasons[index] and found.reasons[index].isprintable()
    moved = np.abs(found.atoms[0].positions - held.positions).max(axis=1)
    assert not moved[[2, 5]].any() and moved.max() > 1e-3
    assert isinstance(found.atoms[0].constraints[0], FixCartesian)


def test_an_error_of_the_potential_is_one_structures(potential, monkeypatch):
    """It comes from the pack; then everybody goes alone, and only one fails."""
    given = small.silicon(3)
    forward = type(potential.model).forward

    def failing(self, data):
        if (data.natoms == 7).any():
            raise IndexError("seven atoms")
        return forward(self, data)

    monkeypatch.setattr(type(potential.model), "forward", failing)
    found = relax(given, potential, max_steps=2)
    sizes = [len(atoms) for atoms in given]
    assert [code is gdeq.Code.FAILED for code in found.codes] == [size == 7 for size in sizes]
    assert sizes.count(7) == 1 and "seven atoms" in found.reasons[sizes.index(7)]


def test_what_is_no_structure_is_refused(potential):
    with pytest.raises(TypeError, match=r"expected a potential of load_potential.*got HydraModel"):
        relax([], small.model("esen"))
    with pytest.raises(TypeError, match="structure 1: expected ase"):
        relax([*small.silicon(1), "Si"], potential)


def test_forces_of_another_library():
    """A spring to each atom's own site, whose minimum is known; FixAtoms are kept here too."""
    sites = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.5]], dtype=torch.float64)
    field = gdeq.from_callable(lambda x: -2.0 * (x - sites), atoms=3)
    x = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(field(x), -2.0 * (x - sites))
    both = field.join([field])(torch.cat([x, x]))
    torch.testing.assert_close(both, torch.cat([field(x), field(x)]))

    generator = np.random.default_rng(0)
    given = [Atoms("Si3", positions=generator.normal(size=(3, 3))) for _ in range(4)]
    given[2].set_constraint(FixAtoms([1]))
    found = relax([*given, Atoms("Si2", positions=np.eye(3)[:2])], field, fmax=1e-5, forces=True)
    for index, end in enumerate(found.atoms[:4]):
        free = [0, 2] if index == 2 else [0, 1, 2]
        np.testing.assert_allclose(end.positions[free], sites.numpy()[free], atol=1e-4)
        known = -2.0 * (end.positions - sites.numpy())
        np.testing.assert_allclose(end.get_forces(apply_constraint=False), known)
    assert found.codes[4] is gdeq.Code.BAD_INPUT and "2 atoms" in found.reasons[4]


def test_forces_that_are_the_gradient_of_an_energy():
    """As conservative potentials have them: by autograd in the function, and in single precision."""
    sites = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])

    def forces(x):
        there = x.detach().float().requires_grad_()
        return -torch.autograd.grad((there - sites).square().sum(), there)[0]

    field = gdeq.from_callable(forces)
    x = torch.ones(2, 3, dtype=torch.float64)
    with torch.no_grad():
        found = field(x)
    torch.testing.assert_close(found, -2.0 * (x - sites))
    assert not found.requires_grad
    found = relax(Atoms("Si2", positions=[[0.1, 0.2, 0.3], [2.1, 0.0, 0.0]]), field, fmax=1e-3)
    assert found.converged.all()
    np.testing.assert_allclose(found.atoms[0].positions, sites.numpy(), atol=1e-3)


def test_the_solver_learns_of_bonds():
    """What stands in the way of elements from a structure to the first guess of the Hessian."""
    held = molecule("C6H6").positions
    i, j = neighbor_list("ij", molecule("C6H6"), 1.5)
    i, j, sites = torch.tensor(i), torch.tensor(j), torch.tensor(held)
    long = 1.03 * (sites[i] - sites[j]).norm(dim=-1, keepdim=True)

    def forces(x):
        apart = x[i] - x[j]
        length = apart.norm(dim=-1, keepdim=True)
        return (sites - x).index_add(0, i, 30.0 * (long - length) * apart / length)

    start = molecule("C6H6")
    start.rattle(0.05, seed=1)
    runs = [
        relax(start, gdeq.from_callable(forces), solver=gdeq.LBFGS(softest=1.0, bonds=b), fmax=1e-3)
        for b in (0.0, 15.0)
    ]
    assert all(run.converged.all() for run in runs)
    assert runs[1].evaluations[0] < 0.8 * runs[0].evaluations[0]


def test_why_one_has_not_converged_is_said():
    """Springs that are too stiff for the step, and one of which the force is never a number."""
    sites = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    start = Atoms("Si2", positions=sites.numpy() + 0.01)
    stiff = gdeq.from_callable(lambda x: -60.0 * (x - sites), atoms=2)
    found = relax(start, stiff, solver="picard", max_steps=20)
    assert (found.codes, found.reasons) == ([gdeq.Code.MAX_STEPS], ["oscillates"])
    slow = gdeq.from_callable(lambda x: -0.1 * (x - sites), atoms=2)
    found = relax(start, slow, solver="picard", max_steps=20, fmax=1e-4)
    assert (found.codes, found.reasons) == ([gdeq.Code.MAX_STEPS], ["out of steps"])
    lost = gdeq.from_callable(lambda x: x * float("nan"), atoms=2)
    found = relax(start, lost)
    assert (found.codes, found.reasons) == ([gdeq.Code.DIVERGED], ["not finite"])
    into_one = gdeq.from_callable(lambda x: -(x - sites[0]), atoms=2)
    found = relax(start, into_one)
    assert (found.codes, found.reasons) == ([gdeq.Code.DIVERGED], ["collapsed"])


def test_a_function_is_trained_through():
    """Its implicit gradient, in closed form: the minimum is the parameter itself."""
    from fairchem_gdeq.relax import Operator
    from fairchem_gdeq.testing.fields import structures

    site = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 3.0, 4.0]], dtype=torch.float64)
    s = structures([1])
    s = type(s)(s.batch, s.free, s.masses.double(), s.cell.double(), s.pbc)
    operator = Operator.build(gdeq.from_callable(lambda x: site - x), s, alpha=0.3)
    gdeq.Implicit(fmax=1e-8, adjoint=gdeq.GMRES(tol=1e-8, damping=0.0))(
        operator, torch.ones(1, 3, dtype=torch.float64), target
    )
    torch.testing.assert_close(site.grad, torch.tensor([[0.0, -0.6, -0.8]], dtype=torch.float64))


def test_a_field_without_sizes_stays_alone():
    field = gdeq.from_callable(lambda x: -x)
    with pytest.raises(ValueError, match="number of atoms"):
        field.join([field])
    with pytest.raises(ValueError, match="shape"):
        gdeq.from_callable(lambda x: x.sum())(torch.zeros(2, 3))
