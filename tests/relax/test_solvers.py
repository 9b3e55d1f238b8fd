"""Equilibrium solvers against ASE's, against each other, and against what must always hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import FIRE, LBFGS
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq import relax
from fairchem_gdeq.relax import SOLVERS, Anderson, Operator, solve
from fairchem_gdeq.relax.solvers.bonds import stretches
from fairchem_gdeq.relax.solvers.lbfgs import inverse_hessian
from fairchem_gdeq.testing.fields import SiteField, calm, random_batch, structures

# Anderson's least-squares problem amplifies the last digits that another order of summation changes,
# so its answers agree as well as two solves to fmax = 1e-6 must: 2 fmax over the softest curvature.
ATOL = {"picard": 1e-9, "anderson": 1e-5, "fire": 1e-9, "lbfgs": 1e-8}


class FieldCalculator(Calculator):
    """One structure of a field, for ASE."""

    implemented_properties = ("energy", "forces")

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        with torch.no_grad():
            forces = self.operator.field(torch.as_tensor(self.atoms.positions)).numpy()
        self.results = {"energy": 0.0, "forces": forces}


class Counting:
    """Wraps a field and counts the atoms that it is asked about."""

    def __init__(self, field, log):
        self.field, self.log = field, log
        self.translation_invariant = field.translation_invariant

    def __call__(self, x):
        self.log.append(len(x))
        return self.field(x)

    def select(self, structures):
        return Counting(self.field.select(structures), self.log)

    def freeze(self, positions):
        return self

    def unfreeze(self):
        return self


class Broken(SiteField):
    """Returns NaN for one structure once its first atom has moved by 0.05 Angstrom."""

    def __init__(self, sites, batch, start, value=float("nan")):
        super().__init__(sites, batch)
        self.start, self.value = start, value
        self.sick = torch.tensor([True] + [False] * int(batch.max()))

    def forward(self, x):
        f = super().forward(x)
        for s in range(len(self.sick)):
            first = int((self.batch == s).nonzero()[0])
            if self.sick[s] and (x[first] - self.start[first]).norm() > 0.05:
                f = torch.where((self.batch == s)[:, None], torch.full_like(f, self.value), f)
        return f

    def select(self, structures):
        out = super().select(structures)
        out.__class__ = Broken
        out.start, out.value = self.start[structures[self.batch]], self.value
        out.sick = self.sick[structures]
        return out


@pytest.mark.parametrize("name", ["fire", "lbfgs"])
def test_same_path_as_ase_for_every_structure_of_a_batch(name):
    fixed = [1, 6]
    operator, x, _ = random_batch("site", [4, 2, 5], fixed=fixed, conservative=True)
    path = []
    solver = SOLVERS[name](**({"softest": None} if name == "lbfgs" else {}))  # as ASE's
    found = solve(
        operator, x, solver, fmax=1e-3, max_steps=400, observe=lambda z, _: path.append(z.clone())
    )
    assert found.converged.all()
    for s in range(3):
        mask = torch.arange(3) == s
        index = operator.structures.atoms_of(mask)
        atoms = Atoms("H" * len(index), positions=x[index].numpy())
        atoms.set_constraint(FixAtoms([i for i, a in enumerate(index.tolist()) if a in fixed]))
        atoms.calc = FieldCalculator(operator.select(mask))
        optimizer = (
            FIRE(atoms, logfile=None)
            if name == "fire"
            else LBFGS(atoms, logfile=None, memory=solver.memory)
        )
        theirs = []
        optimizer.attach(lambda a=atoms, t=theirs: t.append(a.positions.copy()))
        optimizer.run(fmax=1e-3, steps=400)
        assert optimizer.nsteps == int(found.steps[s])
        for ours, reference in zip(path, theirs[1:], strict=False):
            np.testing.assert_allclose(ours[index].numpy(), reference, atol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
def test_batch_equals_one_at_a_time(name):
    operator, x, _ = random_batch("site", [4, 1, 5], alpha=0.2)
    together = solve(operator, x, SOLVERS[name](), fmax=1e-6, max_steps=3000)
    assert together.converged.all()
    for s in range(3):
        mask = torch.arange(3) == s
        index = operator.structures.atoms_of(mask)
        alone = solve(operator.select(mask), x[index], SOLVERS[name](), 1e-6, max_steps=3000)
        torch.testing.assert_close(
            alone.positions, together.positions[index], rtol=0, atol=ATOL[name]
        )
        slack = 3 if name == "anderson" else 0
        assert abs(int(alone.steps[0]) - int(together.steps[s])) <= slack
        assert together.evaluations[s] == together.steps[s] + 1


def test_all_solvers_find_a_fixed_point_and_anderson_beats_picard():
    operator, x, _ = random_batch("site", [4, 3, 5], alpha=0.2)
    found = {n: solve(operator, x, SOLVERS[n](), fmax=1e-8, max_steps=5000) for n in SOLVERS}
    for name, solution in found.items():
        assert solution.converged.all(), name
        residual = (operator(solution.positions) - solution.positions).norm(dim=-1).max()
        assert residual < 0.2 * 1e-8 * 1.01, name
    assert (found["anderson"].evaluations < found["picard"].evaluations).all()


def test_anderson_restarts_when_its_window_misleads():
    operator, x, _ = random_batch("site", [4, 3, 5], alpha=0.2)
    with_restart = solve(operator, x, Anderson(), fmax=1e-8, max_steps=1000)
    never = Anderson(growth=float("inf"))
    without = solve(operator, x, never, fmax=1e-8, max_steps=1000)
    assert with_restart.converged.all() and without.converged.all()
    assert with_restart.evaluations[1] < 0.8 * without.evaluations[1]


def test_compaction_spends_nothing_on_converged_structures():
    operator, x, _ = random_batch("site", [4, 3, 5], alpha=0.2)
    log = []
    counted = Operator.build(Counting(operator.field, log), operator.structures, 0.2)
    found = solve(counted, x, relax.LBFGS(), fmax=1e-6, max_steps=500)
    sizes = torch.bincount(operator.structures.batch)
    assert sum(log) == int((found.evaluations * sizes).sum())
    assert (found.evaluations == found.steps + 1).all()
    assert len(set(log)) > 1, "no structure left the batch early"


def test_done_at_the_start_costs_one_evaluation():
    operator, x, _ = random_batch("site", [4, 3])
    first = solve(operator, x, relax.LBFGS(), fmax=1e-6, max_steps=500)
    again = solve(operator, first.positions, relax.FIRE(), fmax=1e-6)
    assert again.converged.all()
    assert (again.evaluations == 1).all() and (again.steps == 0).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_step_cap_is_a_value_not_an_exception(name):
    operator, x, _ = random_batch("site", [4, 3])
    found = solve(operator, x, SOLVERS[name](), fmax=1e-12, max_steps=3)
    assert not found.converged.any() and not found.diverged.any()
    assert (found.steps == 3).all() and (found.evaluations == 4).all()
    assert torch.isfinite(found.positions).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", SOLVERS)
def test_divergence_stays_with_the_structure_that_diverges(name, value):
    s = structures([3, 4, 2])
    generator = torch.Generator().manual_seed(0)
    sites = torch.randn(9, 3, generator=generator)
    x = sites + torch.randn(9, 3, generator=generator)
    broken = Operator.build(Broken(sites, s.batch, x, value), s, 0.2)
    found = solve(broken, x, SOLVERS[name](), fmax=1e-6, max_steps=2000)
    assert found.diverged.tolist() == [True, False, False]
    assert found.converged.tolist() == [False, True, True]
    assert torch.isfinite(found.positions).all() and torch.isfinite(found.forces).all()
    healthy = torch.tensor([False, True, True])
    index = s.atoms_of(healthy)
    alone = solve(broken.select(healthy), x[index], SOLVERS[name](), 1e-6, max_steps=2000)
    torch.testing.assert_close(found.positions[index], alone.positions, rtol=0, atol=ATOL[name])


def test_pinned_structures_do_not_drift():
    operator, x, _ = random_batch("pair", [3, 4], alpha=0.1)
    found = solve(operator, x, relax.LBFGS(stiffness=5.0, softest=None), fmax=1e-8, max_steps=2000)
    assert found.converged.all()
    for s in range(2):
        mine = operator.structures.batch == s
        moved = found.positions[mine].mean(0) - x[mine].mean(0)
        assert moved.abs().max() < 1e-10


@pytest.mark.parametrize("stiffer", [0.0, 5.0])
def test_lbfgs_with_an_adaptive_guess_is_dense_bfgs(stiffer):
    """Its inverse Hessian against the dense recursion from (s . y / y . P^-1 y) P^-1 of the latest pair.

    P is the identity without bonds (Nocedal and Wright, eq. 7.20).
    """
    operator, x, _ = random_batch("site", [4], alpha=0.1)
    numbers = torch.tensor([6, 8, 1, 22])
    operator = replace(operator, structures=replace(operator.structures, numbers=numbers))
    x = x / x.norm(dim=-1).max()  # near enough to be bonded
    rows = stretches(operator.structures, x).flatten(1)
    assert len(rows) > 0
    identity = torch.eye(12)
    guess = torch.linalg.inv(identity + stiffer * rows.T @ rows)
    solver = relax.LBFGS(softest=0.01, max_step=0.05, bonds=stiffer)
    state = solver.start(operator, x)
    visited, forces = [x], []
    for _ in range(5):
        forces.append(operator.forces(visited[-1]).detach())
        move, state = solver.propose(operator, visited[-1], forces[-1], state)
        visited.append(visited[-1] + move)
    pairs = [
        ((visited[k + 1] - visited[k]).reshape(-1), (forces[k] - forces[k + 1]).reshape(-1))
        for k in range(4)
    ]
    assert all(s @ y > 0 for s, y in pairs)
    s, y = pairs[-1]
    inverse = (s @ y) / (y @ guess @ y) * guess
    for s, y in pairs:
        left = identity - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    found = inverse_hessian(state, forces[-1], operator.structures.batch, 1).reshape(-1)
    torch.testing.assert_close(found, inverse @ forces[-1].reshape(-1), rtol=1e-9, atol=1e-12)


def test_adaptive_guess_saves_evaluations():
    operator, x, _ = random_batch("site", [4, 3, 5], alpha=0.1)
    fixed, adaptive = relax.LBFGS(softest=None), relax.LBFGS(softest=0.01)
    expected = solve(operator, x, fixed, fmax=1e-6, max_steps=2000)
    found = solve(operator, x, adaptive, fmax=1e-6, max_steps=2000)
    assert found.converged.all() and expected.converged.all()
    assert (found.evaluations < expected.evaluations).all()


@settings(max_examples=20, deadline=None)
@given(
    fixed=st.sets(st.integers(0, 8), max_size=7),
    name=st.sampled_from(list(SOLVERS)),
    kind=st.sampled_from(["site", "pair"]),
    seed=st.integers(0, 100),
)
def test_fixed_atoms_never_move(fixed, name, kind, seed):
    operator, x, _ = random_batch(kind, [4, 5], seed=seed, fixed=sorted(fixed))
    found = solve(operator, x, SOLVERS[name](), fmax=1e-9, max_steps=12)
    index = sorted(fixed)
    assert torch.equal(found.positions[index], x[index])


@settings(max_examples=10, deadline=None)
@given(order=st.permutations([0, 1, 2]), name=st.sampled_from(list(SOLVERS)))
def test_order_of_the_batch_does_not_matter(order, name):
    operator, x, _ = random_batch("site", [4, 2, 3], alpha=0.2, conservative=True)
    s = operator.structures
    index = torch.cat([(s.batch == k).nonzero().squeeze(-1) for k in order])
    sizes = [int((s.batch == k).sum()) for k in order]
    shuffled = structures(sizes)
    field = SiteField(operator.field.sites[index], shuffled.batch)
    calm(field)
    other = Operator.build(field, shuffled, 0.2)
    a = solve(operator, x, SOLVERS[name](), fmax=1e-6, max_steps=3000)
    b = solve(other, x[index], SOLVERS[name](), fmax=1e-6, max_steps=3000)
    torch.testing.assert_close(b.positions, a.positions[index], rtol=0, atol=ATOL[name])


def test_unknown_solver_is_named():
    with pytest.raises(ValueError, match=r"'bfgs'.*anderson, fire, lbfgs, picard"):
        SOLVERS["bfgs"]()


@pytest.mark.parametrize("kind", ["site", "pair"])
def test_anderson_in_single_precision_takes_the_steps_of_double(kind):
    """Structures of two atoms have more columns than coordinates: the Gram matrix is singular but for
    the ridge, which rounding to single precision would drown."""
    steps = []
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(torch.float64)
        operator, x, _ = random_batch(kind, [2] * 8, alpha=0.05)
        s = operator.structures
        s = replace(s, masses=s.masses.to(dtype), cell=s.cell.to(dtype))
        field = operator.field.to(dtype)
        for name in ("sites", "strength"):
            if hasattr(field, name):
                setattr(field, name, getattr(field, name).to(dtype))
        torch.set_default_dtype(dtype)
        single = Operator.build(field, s, torch.tensor(0.05, dtype=dtype))
        found = solve(single, x.to(dtype), Anderson(), 1e-3, 300)
        assert not found.diverged.any()
        steps.append(found.steps)
    middle = [float(each.double().median()) for each in steps]
    assert middle[1] <= 1.5 * middle[0] + 2, steps
    assert int((steps[1] >= 300).sum()) <= int((steps[0] >= 300).sum()), steps
