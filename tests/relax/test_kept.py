"""Graphs of the guidance window kept within a budget: the same gradient, fewer evaluations."""

import pytest
import torch

from fairchem_gdeq.relax import delta_q, make_signal
from fairchem_gdeq.relax.guidance import (
    guidance_by_stored_graph,
    guidance_by_sweep,
    rollout,
    sweep,
)
from fairchem_gdeq.relax.kept import BACKWARD, Window, bytes_on, graph_bytes, memory_of
from fairchem_gdeq.testing.fields import grads, random_batch, zero
from tests.relax.test_dropped import Cliff
from tests.relax.test_gradients import largest_forces
from tests.relax.test_linearised import Checkpointed, Watched, problem
from tests.relax.test_signals import TIGHT

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, 0),
        ("4GB", 4e9),
        ("1.5 gb", 1.5e9),
        ("500MB", 5e8),
        ("12", 12),
        (12, 12),
        (2e9, 2e9),
        (0.3, 0.3),
        ("0.3", 0.3),
    ],
)
def test_sizes(value, wanted):
    assert memory_of("key", value) == wanted


@pytest.mark.parametrize("value", ["", "4 G B", "GB", "1.2.3MB", -1, 0, True, "4XB", float("nan")])
def test_a_wrong_size_is_named(value):
    with pytest.raises(ValueError, match=r"guidance_memory=.*expected a size such as") as error:
        make_signal("gdeq", guidance_memory=value)
    assert repr(value) in str(error.value)


def test_a_share_is_one_of_a_gpu():
    signal = make_signal("truncated_bptt", guidance_memory=0.3)
    operator, x, target = random_batch("site", [3])
    with pytest.raises(ValueError, match=r"guidance_memory=0\.3: a share is one of a GPU's memory"):
        signal(operator, x, target)
    assert bytes_on(CPU, "guidance_memory", "2KB") == 2000


def test_only_the_sweep_has_graphs_to_keep():
    with pytest.raises(ValueError, match="guidance_memory=1GB needs guidance_gradient=sweep"):
        make_signal("bptt", guidance_memory="1GB", guidance_gradient="stored_graph")


def size_of_one(operator, x):
    with graph_bytes(CPU) as taken:
        out = operator(x.clone().requires_grad_(True))
    return taken(out)


def test_what_a_graph_takes_is_what_is_saved_without_parameters():
    weight = torch.ones(5, 5, requires_grad=True)
    x = torch.ones(7, 5, requires_grad=True)
    with graph_bytes(CPU) as taken:
        y = torch.tanh(x @ weight.T)  # saves x and the weight, which are there anyway, and y
        z = (y * y).exp()  # saves y, which is counted, and z
    assert taken(z) == 2 * 35 * x.element_size()


@pytest.mark.parametrize("kind", [Watched, Checkpointed])
@pytest.mark.parametrize("fits", [0, 1, 3, 100])
@pytest.mark.parametrize("settle", [False, True])
def test_the_gradient_is_that_of_the_stored_graph(kind, fits, settle):
    options = {"alpha": 0.2, "fixed": [1], "cap": 0.1}
    operator, x, target = problem(kind, **options)
    # As many eV/Angstrom as the calmest structure has left after some steps.
    fmax = 1.01 * float(largest_forces(operator, rollout(operator, x, 5).positions).min()) * settle
    memory = int((fits + BACKWARD + 0.5) * size_of_one(operator, x))
    for each in (operator.field.log, operator.field.most, operator.field.alive):
        each.clear()
    loss = lambda z: delta_q(z, target, operator.structures, operator.pin)  # noqa: E731
    path, losses, total = guidance_by_sweep(operator, x, 12, loss, 0.7, fmax, memory)
    found, steps = grads(operator), len(path.steps)
    if settle:
        assert path.settled.any(), "nothing settled: the test shows nothing"
    if kind is Watched:
        assert max(operator.field.most) <= max(fits, 1), "more graphs at once than fit"
        rolled = 1 if fits == 0 else steps
        assert len(operator.field.log) == rolled + max(steps - fits, 0), "evaluations with a graph"
        assert all(each() is None for each in operator.field.alive), "a graph is held"
    zero(operator)
    plain, x, target = problem(**options)
    loss = lambda z: delta_q(z, target, plain.structures, plain.pin)  # noqa: E731
    _, wanted, mean = guidance_by_stored_graph(plain, x, 12, loss, 0.7, fmax)
    assert torch.equal(losses, wanted) and total == mean
    torch.testing.assert_close(found, grads(plain), rtol=1e-11, atol=1e-13)


def test_a_learnt_step_gets_its_gradient_from_kept_graphs():
    gradients = []
    for memory in (0, 10**9):
        alpha = torch.tensor(0.1, requires_grad=True)
        operator, x, target = random_batch("site", [4], alpha=alpha)
        loss = lambda z, o=operator, t=target: delta_q(z, t, o.structures, o.pin)  # noqa: E731
        guidance_by_sweep(operator, x, 10, loss, 1.0, 0.0, memory)
        gradients.append(float(alpha.grad))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-12) and gradients[0] != 0


@pytest.mark.parametrize("signal", ["gdeq", "truncated_bptt", "bptt"])
@pytest.mark.parametrize("wrong", [1, 2, 3, 4])
def test_spared_structures_change_nothing_and_hold_no_graph(signal, wrong):
    settings = TIGHT | {"max_unroll": 4}
    operator, x, target = problem(conservative=True)
    whole = make_signal(signal, **settings)(operator, x, target)
    ends = torch.where(whole.relaxed.isnan(), whole.guided, whole.relaxed).sort().values
    spare = float(ends[4 - wrong] + (ends[3 - wrong] if wrong < 4 else 0.0)) / 2
    found = []
    for memory in (None, "1GB"):
        zero(operator)
        operator.field.alive.clear()
        again = make_signal(signal, **settings, spare=spare, guidance_memory=memory)
        report = again(operator, x, target)
        assert int((~report.spared).sum()) == wrong
        assert all(each() is None for each in operator.field.alive), "a graph is held"
        found.append((grads(operator), report.loss, report.vjps))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-12)
    assert found[0][1] == found[1][1] and torch.equal(found[0][2], found[1][2])


def test_a_kept_graph_is_used_where_that_is_cheaper():
    """Of atoms 4, 1, 5, 3: without the last, 2 x 13 are less than 3 x 10; with it alone, more than 9."""
    operator, x, target = problem()
    for rest, evaluations in (([1, 1, 1, 0], 0), ([0, 0, 0, 1], 6), ([0, 0, 0, 0], 0)):
        path = rollout(operator, x, 6, memory=10**9)
        operator.field.log.clear()
        counted = torch.tensor(rest) > 0
        lam = torch.where(counted[operator.structures.batch, None], torch.ones_like(x), torch.nan)
        zero(operator)
        sweep(path, lam, counted)
        assert len(operator.field.log) == evaluations
        assert all(p.grad is None or p.grad.isfinite().all() for p in operator.field.parameters())
        assert all(each() is None for each in operator.field.alive), "a graph is held"


def test_what_diverged_leaves_no_trace_in_kept_graphs():
    found = []
    for memory in (0, 10**9):
        operator, x, target = random_batch("site", [3, 4], alpha=0.1)
        field = operator.field
        field.__class__ = Cliff
        x[0] = 6.0
        field.sites[:3] = x[:3] + 8.0
        field.sick, field.limit = True, 7.0
        loss = lambda z, o=operator, t=target: delta_q(z, t, o.structures, o.pin)  # noqa: E731
        path, _, _ = guidance_by_sweep(operator, x, 8, loss, 1.0, 0.0, memory)
        assert path.diverged.tolist() == [True, False]
        found.append(grads(operator))
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("graphs", "fits"), [(0.9, 0), (1.4, 0), (1.6, 1), (3.4, 2), (3.6, 3)])
def test_a_budget_has_room_for_a_backward_besides_its_graphs(graphs, fits):
    operator, x, _ = problem()
    window = Window(int(graphs * size_of_one(operator, x)))
    operator.field.log.clear()
    with torch.no_grad():
        kept = [window.apply(operator, x, None, torch.zeros(1))[3] for _ in range(5)]
    assert window.fits == fits and sum(map(bool, kept)) == fits
    assert len(operator.field.log) == (5 if fits else 1), "graphs that are built"
