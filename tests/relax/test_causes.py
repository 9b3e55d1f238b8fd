"""Structures that fail in every way there is, in one batch with sound ones: told apart, and isolated."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax import GMRES, Cause, Operator, Picard, Relaxer, make_signal, solve
from fairchem_gdeq.relax.causes import SHORTEST
from fairchem_gdeq.relax.structures import Structures
from fairchem_gdeq.testing.fields import structures


@pytest.fixture
def atoms_anywhere():
    """Not here: two atoms in one place are one of the causes."""


ALPHA, CAP = 0.1, 0.5


class Wells(torch.nn.Module):
    """F = -k (x - site) + w: each atom in a well of its own, with a push w of each structure."""

    translation_invariant = rotation_equivariant = False

    def __init__(self, stiffness, sites, batch, push=None):
        super().__init__()
        self.stiffness, self.sites, self.batch = stiffness, sites, batch
        count = int(batch.max()) + 1
        self.push = torch.nn.Parameter(torch.zeros(count)) if push is None else push
        self.rows = torch.arange(count)

    def forward(self, x):
        return self.push[self.rows][self.batch, None] - self.stiffness * (x - self.sites)

    def select(self, mask):
        atoms = mask[self.batch]
        batch = (mask.long().cumsum(0) - 1)[self.batch[atoms]]
        part = Wells(self.stiffness[atoms], self.sites[atoms], batch, self.push)
        part.rows = self.rows[mask]
        return part

    def freeze(self, positions):
        return self

    def unfreeze(self):
        return self


APART = [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]
# Curvatures of the two atoms, their wells, and where they begin.
SOUND = ([1.0, 2.0, 3.0], APART, 0.4)
CASES = {
    Cause.OUT_OF_STEPS: ([0.02, 0.02, 0.02], APART, 0.4),
    Cause.OSCILLATES: ([2.2 / ALPHA] * 3, APART, 0.01),  # rho(J_G) = 1.2, held back by the cap
    Cause.COLLAPSED: ([1.0, 2.0, 3.0], [[0.0, 0.0, 0.0], [SHORTEST / 2, 0.0, 0.0]], 0.4),
    Cause.EXPLODED: ([-5.0, 2.0, 3.0], APART, 0.4),
    Cause.NOT_FINITE: ([math.nan, 2.0, 3.0], APART, 0.4),
}
METHOD = {"horizon": 3, "fmax": 1e-8, "max_steps": 400, "adjoint": GMRES(tol=1e-11, damping=0.0)}
METHOD |= {"solver": Picard(), "lambda_guide": 1.0, "lambda_eq": 1.0}


def batch_of(*cases, cap=CAP):
    """An operator, starts and targets of a structure of two atoms for each case."""
    s = structures([2] * len(cases))
    s = replace(s, masses=torch.ones_like(s.masses))
    curvatures = torch.tensor([[k, k] for k, _, _ in cases]).reshape(-1, 3)
    sites = torch.tensor([wells for _, wells, _ in cases]).reshape(-1, 3)
    away = torch.tensor([[far, far] for _, _, far in cases]).reshape(-1, 1)
    starts = sites + away * torch.tensor([1.0, -0.5, 0.25])
    operator = Operator.build(Wells(curvatures, sites, s.batch), s, ALPHA, cap)
    return operator, starts, sites + torch.tensor([0.1, 0.2, -0.1])


def gradient_of(signal, *cases, cap=CAP):
    """The report, and what the gradient is of each structure's push, but for 1 / s."""
    operator, starts, targets = batch_of(*cases, cap=cap)
    report = make_signal(signal, **METHOD)(operator, starts, targets)
    return report, operator.field.push.grad * len(cases)


@pytest.mark.parametrize("signal", ["gdeq", "implicit", "coupled"])
@pytest.mark.parametrize("cause", CASES)
def test_a_cause_is_told_and_the_others_learn_the_same(signal, cause):
    report, among = gradient_of(signal, SOUND, CASES[cause], SOUND)
    _, alone = gradient_of(signal, SOUND, SOUND)
    assert report.cause.tolist() == [Cause.NONE, cause, Cause.NONE]
    assert report.contributing.tolist() == [True, False, True]
    torch.testing.assert_close(among[[0, 2]], alone, rtol=1e-10, atol=0)
    assert among.isfinite().all()


@pytest.mark.parametrize("signal", ["gdeq", "implicit", "coupled", "bptt"])
@pytest.mark.parametrize("rho", [1.5, 9.0, 1e3, 1e6])
@pytest.mark.parametrize("cap", [CAP, None])
def test_a_map_that_is_no_contraction_by_far_stays_alone(signal, rho, cap):
    """rho(J_G) of one structure: plain steps of it are held by the cap, or leave any bounds."""
    stiff = ([(1 + rho) / ALPHA] * 3, APART, 0.01)
    report, among = gradient_of(signal, SOUND, stiff, SOUND, cap=cap)
    _, alone = gradient_of(signal, SOUND, SOUND, cap=cap)
    torch.testing.assert_close(among[[0, 2]], alone, rtol=1e-10, atol=0)
    assert among.isfinite().all()
    if signal != "bptt":
        assert report.contributing.tolist() == [True, False, True]
        assert report.cause[1] in (Cause.OSCILLATES, Cause.EXPLODED, Cause.NOT_FINITE)


def test_all_of_them_together():
    report, among = gradient_of("gdeq", SOUND, *CASES.values())
    assert report.cause.tolist() == [Cause.NONE, *CASES]
    assert report.diverged.tolist() == [False, False, False, True, True, True]
    torch.testing.assert_close(among[0], gradient_of("gdeq", SOUND)[1][0], rtol=1e-10, atol=0)


def test_a_singular_adjoint_is_told_from_one_that_is_not_solved():
    """A flat direction: X* is where the start is, and (I - J) u = g has no solution."""
    flat = ([0.0, 2.0, 3.0], APART, 0.0)
    report, among = gradient_of("implicit", SOUND, flat)
    assert report.cause.tolist() == [Cause.NONE, Cause.NONE]
    assert (report.unbounded | report.unsolved).tolist() == [False, True]
    torch.testing.assert_close(among[0], gradient_of("implicit", SOUND)[1][0], rtol=1e-10, atol=0)


def test_a_stream_tells_the_same():
    """One structure at a time, as in validation and prediction, and guidance steps first."""
    how = Relaxer(horizon=2, solver=Picard(), fmax=1e-8, max_steps=400)
    requests = []
    for key, case in enumerate([SOUND, *CASES.values()]):
        operator, start, _ = batch_of(case)
        requests.append(Request(key, operator, start))
    for request in requests:  # a budget for one: this field cannot be joined
        (outcome,) = Stream([request], how, budget=2)
        cause = [Cause.NONE, *CASES][request.key]
        # Collapse is seen where an outcome is measured (test_measures).
        expected = Cause.NONE if cause == Cause.COLLAPSED else cause
        assert outcome.cause == expected and outcome.converged == (expected == Cause.NONE)


def test_force_training_that_cannot_be_helped_is_not_called_an_oscillation():
    """The largest force is lowest at the last step: more steps would do."""
    operator, start, _ = batch_of(CASES[Cause.OUT_OF_STEPS])
    for steps in (1, 2, 50):
        found = solve(operator, start, Picard(), 1e-8, steps)
        assert found.cause.tolist() == [Cause.OUT_OF_STEPS]


# ---- the shortest distance ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(0.01, 0.49))
def test_shortest_distance_is_that_of_ase(seed, atoms, near):
    """In skew cells, periodic in some directions, with two atoms that are near each other."""
    import ase
    from ase.neighborlist import neighbor_list

    generator = torch.Generator().manual_seed(seed)
    cell = 6 * torch.eye(3) + 2 * torch.rand(3, 3, generator=generator)
    pbc = torch.rand(3, generator=generator) < 0.7
    x = torch.rand(atoms, 3, generator=generator) @ cell
    turn = torch.randn(3, generator=generator)
    x[-1] = x[0] + near * turn / turn.norm() + pbc.double() @ (cell * 2)
    s = Structures(
        batch=torch.zeros(atoms, dtype=torch.long),
        free=torch.ones(atoms, dtype=torch.bool),
        masses=torch.ones(atoms),
        cell=cell[None],
        pbc=pbc[None],
    )
    frame = ase.Atoms("H" * atoms, x.numpy(), cell=cell.numpy(), pbc=pbc.numpy())
    expected = neighbor_list("d", frame, 1.0).min()
    assert float(s.shortest_distances(x)) == pytest.approx(expected, rel=1e-9)


def test_one_atom_or_none_has_no_distance_and_parts_of_a_large_structure_agree(monkeypatch):
    s = structures([1, 40, 3, 0], length=9.0)
    x = 9 * torch.rand(44, 3, generator=torch.Generator().manual_seed(1))
    whole = s.shortest_distances(x)
    assert whole[0] == whole[3] == math.inf
    monkeypatch.setattr("fairchem_gdeq.relax.structures.PAIRS", 100)
    assert torch.equal(s.shortest_distances(x), whole)


def test_a_cause_is_found_by_its_key():
    assert [Cause.of(cause.key) for cause in Cause] == list(Cause)
    with pytest.raises(KeyError, match="LATE"):
        Cause.of("late")
