"""What the method itself asks of a device for each force evaluation: waits, and kernels.

On a GPU with small structures both decide the speed: a wait empties its queue, and a kernel takes some
microseconds whatever it computes. The field here is two kernels and waits for nothing, so all else that is
counted is ours. Structures settle, leave and join on the way, as in real batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from fairchem_gdeq.relax import Arrival, Course, Operator, Stream, make_solver, solve
from fairchem_gdeq.relax.adjoint import ADJOINTS
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.relax.segments import to_device
from tests.relax.fields import moved, structures

SIZES = [4, 3, 5, 2, 6, 4, 3, 5]
# Kernels for each evaluation, and waits beyond one for each evaluation in the whole loop. Of the former,
# before this was counted: picard 144, anderson 465, fire 176, lbfgs 301, rollout 118, gmres 260.
BUDGETS = {"picard": 35, "anderson": 90, "fire": 82, "lbfgs": 100}
ROLLOUT, STREAM = 38, 100
ADJOINT = {"gmres": (145, 2), "neumann": (80, 2)}


@dataclass(frozen=True)
class Springs:
    """F = k (site - x); ``calls`` counts evaluations in all of those that come from one."""

    sites: Tensor
    stiffness: Tensor
    sizes: tuple[int, ...]
    calls: list[int] = field(default_factory=list)
    translation_invariant = True
    rotation_equivariant = False

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.stiffness * (self.sites - x)

    def select(self, mask: Tensor) -> "Springs":
        rows = mask.repeat_interleave(torch.tensor(self.sizes)).nonzero().squeeze(-1)
        atoms = to_device(rows, self.sites.device)
        sizes = tuple(n for n, kept in zip(self.sizes, mask.tolist(), strict=True) if kept)
        return Springs(self.sites[atoms], self.stiffness[atoms], sizes, self.calls)

    def join(self, others: Sequence["Springs"]) -> "Springs":
        parts = [self, *others]
        sizes = tuple(n for part in parts for n in part.sizes)
        return Springs(
            torch.cat([part.sites for part in parts]),
            torch.cat([part.stiffness for part in parts]),
            *(sizes, self.calls),
        )

    def refreeze(self, positions: Tensor) -> "Springs":
        return self

    def thaw(self) -> "Springs":
        return self


@pytest.fixture
def problem(device):
    """(operator, start) whose structures settle at different times, with drift taken out."""
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    generator = torch.Generator().manual_seed(0)
    n = sum(SIZES)
    sites = torch.randn(n, 3, generator=generator)
    start = sites + torch.randn(n, 3, generator=generator)
    stiffness = 0.5 + 5 * torch.rand(n, 1, generator=generator)
    springs = Springs(sites.to(device), stiffness.to(device), tuple(SIZES))
    s = moved(structures(SIZES), device)
    return Operator.build(springs, s, torch.tensor(0.05).to(device), cap=0.1), start.to(device)


def spent(operator, run):
    """Evaluations, waits beyond one for each, and kernels for each."""
    from tests.device.fake import counted

    operator.field.calls.clear()
    with counted() as counts:
        run()
    calls = len(operator.field.calls)
    assert calls > 20, "too short to tell"
    return calls, sum(counts.waits.values()) - calls, sum(counts.kernels.values()) / calls


@pytest.mark.parametrize("name", BUDGETS)
def test_solve(problem, name):
    operator, start = problem
    ends = []
    run = lambda: ends.append(solve(operator, start, make_solver(name), 1e-3, 250))  # noqa: E731
    _, waits, kernels = spent(operator, run)
    assert waits <= 0 and kernels <= BUDGETS[name], (waits, kernels)
    assert len(set(ends[0].steps.tolist())) > 4, "structures leave one by one"


def test_rollout(problem):
    operator, start = problem
    paths = []
    _, waits, kernels = spent(operator, lambda: paths.append(rollout(operator, start, 40, 0.5)))
    assert waits <= 0 and kernels <= ROLLOUT, (waits, kernels)
    assert paths[0].settled.any()


@pytest.mark.parametrize("name", ADJOINT)
def test_adjoint(problem, name):
    """Each VJP's backward pass is counted too: the sweep and the adjoints share it."""
    operator, start = problem
    g = start * torch.linspace(0.5, 2.0, len(start)).to(start.device)[:, None]
    answers = []
    run = lambda: answers.append(ADJOINTS[name](operator, start, g, tol=1e-6))  # noqa: E731
    _, waits, kernels = spent(operator, run)
    most, more = ADJOINT[name]
    assert waits <= more and kernels <= most, (waits, kernels)
    assert name != "gmres" or len(set(answers[0].vjps.tolist())) > 4


@pytest.mark.parametrize("horizon", [0, 6])
def test_stream(problem, horizon):
    operator, start = problem
    count = operator.structures.count
    masks = torch.eye(count, dtype=torch.bool)
    arrivals = [
        Arrival(k, operator.select(masks[k]), start[operator.structures.atoms_of(masks[k])])
        for k in range(count)
    ]
    way = Course(horizon, lambda: make_solver("lbfgs"), 1e-3, 200)
    endings = []
    _, waits, kernels = spent(operator, lambda: endings.extend(Stream(arrivals, way, 14)))
    assert waits <= 0 and kernels <= STREAM, (waits, kernels)
    assert len(endings) == count and all(end.converged for end in endings)


def test_a_wait_that_creeps_in_is_seen(problem):
    """A solver that asks for a number at every step breaks the budget."""
    operator, start = problem
    solver = make_solver("picard")
    plain = solver.propose

    def asks(*args):
        move = plain(*args)
        return move if bool(move.any()) else move

    solver.propose = asks
    _, waits, _ = spent(operator, lambda: solve(operator, start, solver, 1e-3, 250))
    assert waits > 20


def test_a_field_that_is_free_of_constants(problem):
    """``project`` knows without asking whether anything is pinned."""
    operator, start = problem
    free = replace(operator, pinned=(0,) * len(SIZES), pin=operator.pin * 0)
    _, _, pinned = spent(operator, lambda: rollout(operator, start, 40))
    _, _, loose = spent(free, lambda: rollout(free, start, 40))
    assert loose < pinned
