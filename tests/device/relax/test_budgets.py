"""What the method itself asks of a device for each force evaluation: waits, and kernels.

On a GPU with small structures both decide the speed: a wait empties its queue, and a kernel takes some
microseconds whatever it computes. Of what is counted two kernels are the field's (``loops``), and in the
adjoints those of its backward pass; all else is ours.
"""

from dataclasses import replace

import pytest

from fairchem_gdeq.relax import Picard, solve
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.relax.linearised import Linearised
from fairchem_gdeq.testing.loops import LOOPS, SIZES, problem

KERNELS = {  # for each evaluation, some 5% above what was counted
    "solve, picard": 33,
    "solve, anderson": 90,
    "solve, fire": 80,
    "solve, lbfgs": 108,
    "rollout": 36,
    "gmres": 158,
    "neumann": 79,
    "stream, no guidance": 104,
    "stream, guidance first": 100,
}
MORE_WAITS = {"gmres": 2, "neumann": 2}  # in a whole loop: for the length of what is asked


@pytest.fixture
def springs(device):
    """The problem of ``loops``."""
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    return problem(device)


def spent(operator, run):
    """Evaluations, waits beyond one for each, kernels for each, and what ``run`` returns."""
    from fairchem_gdeq.testing.device.counting import counted

    operator.field.calls.clear()
    with counted() as counts:
        out = run()
    calls = len(operator.field.calls)
    assert calls > 10, "too short to tell"
    return calls, sum(counts.waits.values()) - calls, sum(counts.kernels.values()) / calls, out


@pytest.mark.parametrize("name", LOOPS)
def test_budget(springs, name):
    """At most one wait an evaluation on average, departures and requests included."""
    _, waits, kernels, ends = spent(springs[0], lambda: LOOPS[name](*springs))
    # The results of a loop are fetched once, at its end.
    assert waits - 1 <= MORE_WAITS.get(name, 0), waits
    assert kernels <= KERNELS[name]
    assert len(set(ends)) > 4 or name == "neumann", "structures leave one by one"


@pytest.mark.parametrize("name", ["gmres", "neumann"])
def test_a_linearisation_waits_no_more_than_the_operator(springs, name):
    """And evaluates the field a few times in all; what it adds in kernels it saves in evaluations."""
    from fairchem_gdeq.testing.device.counting import counted

    operator, start = springs
    waits, calls = [], []
    for each in (operator, Linearised.at(operator, start)):
        operator.field.calls.clear()
        with counted() as counts:
            LOOPS[name](each, start)
        waits.append(sum(counts.waits.values()))
        calls.append(len(operator.field.calls))
    assert waits[1] <= waits[0] and calls[1] <= calls[0] / 2


def test_keeping_graphs_waits_no_more(springs):
    operator, start = springs
    _, waits, _, _ = spent(operator, lambda: rollout(operator, start, 40, 0.5, memory=10**6))
    assert waits - 1 <= 0


def test_a_wait_that_creeps_in_is_seen(springs):
    """A solver that asks for a number at every step breaks the budget."""
    operator, start = springs

    class Asking(Picard):
        def propose(self, *args):
            move, state = super().propose(*args)
            assert bool(move.isfinite().all())
            return move, state

    solver = Asking()
    calls, waits, *_ = spent(operator, lambda: solve(operator, start, solver, 1e-3, 250))
    assert waits >= calls - 1


def test_what_is_constant_is_not_asked(springs):
    """Whether anything is pinned is known without asking, and costs nothing where nothing is."""
    operator, start = springs
    free = replace(operator, pinned=(0,) * len(SIZES), pin=operator.pin * 0)
    _, _, pinned, _ = spent(operator, lambda: rollout(operator, start, 40))
    _, waits, loose, _ = spent(free, lambda: rollout(free, start, 40))
    assert waits <= 0 and loose < pinned
