"""In-flight batching against each structure alone: rollout, then solve."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax import LBFGS, SOLVERS, Operator, Relaxer, solve
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.testing.fields import SiteField, calm, random_batch, structures
from tests.relax.test_solvers import ATOL, Broken


def course(name="lbfgs", horizon=3, fmax=1e-6, max_steps=1000):
    return Relaxer(horizon, SOLVERS[name](), fmax, max_steps)


def requests(operator, x):
    """The structures of a batch as requests of one each."""
    for k in range(operator.structures.count):
        mask = torch.arange(operator.structures.count) == k
        yield Request(k, operator.select(mask), x[operator.structures.atoms_of(mask)])


def alone(request, way):
    """(positions, converged, diverged, evaluations, steps) without any stream."""
    path = rollout(request.operator, request.start, way.horizon, way.fmax)
    end = solve(request.operator, path.positions, way.solver, way.fmax, way.max_steps)
    return (
        end.positions,
        bool(end.converged & ~path.diverged),
        bool(end.diverged | path.diverged),
        int(end.evaluations + path.evaluations),
        int(end.steps),
    )


def assert_as_alone(operator, x, way, budget, atol, slack=0):
    outcomes = {e.key: e for e in Stream(requests(operator, x), way, budget)}
    assert sorted(outcomes) == list(range(operator.structures.count))
    for request in requests(operator, x):
        positions, converged, diverged, evaluations, steps = alone(request, way)
        end = outcomes[request.key]
        torch.testing.assert_close(end.positions, positions, rtol=0, atol=atol)
        assert (end.converged, end.diverged, end.fitted) == (converged, diverged, True)
        assert abs(end.evaluations - evaluations) <= slack and abs(end.steps - steps) <= slack
    return outcomes


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    budget=st.integers(1, 25),
    horizon=st.integers(0, 5),
    kind=st.sampled_from(["site", "pair"]),
    name=st.sampled_from(["picard", "fire", "lbfgs"]),
    max_steps=st.sampled_from([0, 4, 30]),  # L-BFGS that wanders for longer amplifies last digits
    fixed=st.sets(st.integers(0, 5), max_size=3),
    seed=st.integers(0, 100),
)
def test_companions_change_nothing(sizes, budget, horizon, kind, name, max_steps, fixed, seed):
    """Same path, to rounding, and the same number of force evaluations, exactly; so far as L-BFGS has
    not amplified the last digits, which on these fields it does within a hundred steps."""
    fixed = [i for i in fixed if i < sum(sizes)]
    operator, x, _ = random_batch(kind, sizes, seed=seed, alpha=0.2, cap=0.3, fixed=fixed)
    assert_as_alone(operator, x, course(name, horizon, max_steps=max_steps), budget, ATOL[name])


def test_companions_change_little_for_anderson():
    """Its least-squares problem amplifies the last digits: the same fixed points to 1e-4, in
    evaluations (up to 90 here) that depend on the processor."""
    operator, x, _ = random_batch("site", [4, 1, 5, 3, 2, 4], alpha=0.2)
    assert_as_alone(operator, x, course("anderson"), 9, 1e-4, slack=60)


def test_companions_change_nothing_for_an_adaptive_lbfgs():
    operator, x, _ = random_batch("site", [4, 1, 5, 3, 2, 4], alpha=0.2, conservative=True)
    way = Relaxer(3, LBFGS(softest=5.0), 1e-6, 1000)
    assert_as_alone(operator, x, way, 9, ATOL["lbfgs"])


@pytest.mark.parametrize("horizon", [0, 30])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_divergence_stays_with_the_structure_that_diverges(horizon, value):
    """In the guidance (NaN, infinity) as in the solver."""
    s = structures([3, 4, 2])
    generator = torch.Generator().manual_seed(0)
    sites = torch.randn(9, 3, generator=generator)
    x = sites + torch.randn(9, 3, generator=generator)
    field = OneBroken(sites, s.batch, x, value)
    calm(field)
    broken = Operator.build(field, s, 0.2, cap=0.3)
    outcomes = assert_as_alone(broken, x, course(horizon=horizon), 6, ATOL["lbfgs"])
    assert [outcomes[k].diverged for k in range(3)] == [True, False, False]
    assert all(torch.isfinite(e.positions).all() for e in outcomes.values())


class OneBroken(Broken):
    """Broken structures that can be joined."""

    def select(self, structures):
        out = super().select(structures)
        out.__class__ = OneBroken
        return out

    def join(self, others):
        parts = [self, *others]
        out = SiteField.join(self, others)
        out.start = torch.cat([p.start for p in parts])
        out.sick = torch.cat([p.sick for p in parts])
        return out


class Limited(SiteField):
    """Has memory for so many atoms, and fails at the evaluations (1, 2, ...) in ``failing``.

    ``log`` holds the sizes of all packs that it was given.
    """

    failing: frozenset = frozenset()

    def forward(self, x):
        self.log.append(len(x))
        if len(x) > self.memory or len(self.log) in self.failing:
            raise self.error
        return super().forward(x)

    def select(self, structures):
        return self._like(super().select(structures))

    def join(self, others):
        return self._like(SiteField.join(self, others))

    def _like(self, out):
        out.__class__ = Limited
        out.memory, out.error, out.log = self.memory, self.error, self.log
        out.failing = self.failing
        return out


def limited(sizes, memory, error):
    operator, x, _ = random_batch("site", sizes, alpha=0.2, conservative=True)
    field = SiteField(operator.field.sites, operator.field.batch)
    calm(field)
    field.__class__ = Limited
    field.memory, field.error, field.log = memory, error, []
    return operator, Operator.build(field, operator.structures, 0.2), x, field.log


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_pack_and_loses_nothing(error):
    operator, poor, x, log = limited([4, 3, 5, 2, 4, 5, 3], 9, error)
    stream = Stream(requests(poor, x), course(), 26)
    outcomes = {e.key: e for e in stream}
    assert stream.budget == 6 and log[:3] == [26, 12, 4]
    assert max(log[2:]) <= 6
    for request in requests(operator, x):
        positions, *_, evaluations, steps = alone(request, course())
        end = outcomes[request.key]
        torch.testing.assert_close(end.positions, positions, rtol=0, atol=ATOL["lbfgs"])
        assert (end.evaluations, end.steps, end.converged) == (evaluations, steps, True)


@pytest.mark.parametrize("name", ["picard", "fire", "lbfgs"])
def test_memory_that_runs_out_midway_keeps_what_was_done(name):
    """The pack is parted deep in the solver, once; histories go along."""
    operator, poor, x, log = limited([4, 3, 5, 2], 100, ERRORS[0])
    poor.field.failing = {20}
    stream = Stream(requests(poor, x), course(name), 14)
    outcomes = {e.key: e for e in stream}
    assert stream.budget == 7 and log[19:21] == [14, 7]
    for request in requests(operator, x):
        positions, *_, evaluations, _ = alone(request, course(name))
        assert outcomes[request.key].evaluations == evaluations
        torch.testing.assert_close(
            outcomes[request.key].positions, positions, rtol=0, atol=ATOL[name]
        )


def test_a_structure_that_does_not_fit_alone_fails_alone():
    operator, poor, x, log = limited([4, 12, 3, 5], 9, ERRORS[0])
    outcomes = {e.key: e for e in Stream(requests(poor, x), course(), 30)}
    assert [outcomes[k].fitted for k in range(4)] == [True, False, True, True]
    assert [outcomes[k].converged for k in range(4)] == [True, False, True, True]
    assert torch.equal(outcomes[1].positions, x[operator.structures.batch == 1])


def test_other_errors_are_not_taken_for_memory():
    _, poor, x, _ = limited([4, 3], 5, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(Stream(requests(poor, x), course(), 30))


def test_packs_are_full_and_within_the_budget():
    _, field, x, log = limited([3] * 12, 100, ERRORS[0])
    stream = Stream(requests(field, x), course(), 10)
    outcomes = []
    for end in stream:
        outcomes.append(end)
        assert stream.in_flight <= 3
    assert set(log[: sum(e.evaluations for e in outcomes[:3])][:10]) == {9}
    assert sum(log) == 3 * sum(e.evaluations for e in outcomes)
    assert sum(size < 9 for size in log) < len(log) / 3, "only the tail may run below the budget"


def test_arrivals_are_pulled_only_when_there_is_room():
    operator, x, _ = random_batch("site", [3] * 6, alpha=0.2)
    pulled = []

    def watch():
        for request in requests(operator, x):
            pulled.append(request.key)
            yield request

    for number, _ in enumerate(Stream(watch(), course(), 6), start=1):
        assert len(pulled) <= number + 3
    assert pulled == list(range(6))


def test_different_maps_cannot_be_joined():
    operator, x, _ = random_batch("site", [3], alpha=0.2)
    other, _, _ = random_batch("site", [3], alpha=0.1)
    with pytest.raises(ValueError, match=r"alpha 0\.2.*alpha 0\.1"):
        operator.join([other])


def test_budget_must_hold_an_atom():
    with pytest.raises(ValueError, match="budget of 0 atoms"):
        Stream([], course(), 0)


def test_one_shot_ends_after_one_evaluation():
    """Where X_0 + alpha F(X_0) is; what would go too far stays, and no force is known there."""
    operator, x, _ = random_batch("site", [4, 2, 3], fixed=[1])
    x[4:6] = 1e6
    way = Relaxer(horizon=1, one_shot=True)
    ends = {end.key: end for end in Stream(requests(operator, x), way, 7)}
    expected = operator(x).detach()
    expected[4:6] = x[4:6]
    found = torch.cat([ends[k].positions for k in range(3)])
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[1], x[1])
    assert [ends[k].diverged for k in range(3)] == [False, True, False]
    for end in ends.values():
        assert end.evaluations == 1 and not end.converged and end.residual == torch.inf
    with pytest.raises(ValueError, match="horizon=0: expected 1 for one_shot"):
        Relaxer(one_shot=True)
