"""The method on a device: what it computes there is what it computes on the CPU.

In double precision. On fields as small as these nothing amplifies the last digits, which another order of
additions changes, beyond 1e-8.
"""

from dataclasses import replace

import pytest
import torch

from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax import (
    ADJOINTS,
    GMRES,
    LBFGS,
    SIGNALS,
    SOLVERS,
    Descent,
    Operator,
    Relaxer,
    make_signal,
    solve,
)
from fairchem_gdeq.relax.decoder import StepDecoder
from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS
from fairchem_gdeq.relax.loss import delta_q, max_displacement
from fairchem_gdeq.testing.fields import random_batch, structures
from tests.device.checks import CPU, assert_on, assert_same

OF_STRUCTURES = [name for name in SIGNALS if name != "ft_static"]  # which has no gradient by them
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
SIZES = [4, 2, 3]
TIGHT = {
    "horizon": 4,
    "fmax": 1e-6,
    "max_steps": 200,
    "max_unroll": 8,
    "adjoint": GMRES(tol=1e-8, max_vjps=80, damping=0.0),
}
WAYS = {name: SOLVERS[name]() for name in SOLVERS} | {"adaptive lbfgs": LBFGS(softest=5.0)}


def step(signal, method, device, lost=None, **batch):
    """A training step: its report, and every gradient; ``lost`` names a structure that diverges."""
    learnt = torch.tensor(0.1, device=device, requires_grad=True)
    batch = {"alpha": learnt, "fixed": [1], "conservative": True} | batch
    operator, x, target = random_batch("site", SIZES, device=device, **batch)
    if lost is not None:
        x = torch.where((operator.structures.batch == lost)[:, None], 1e6, x)
    report = make_signal(signal, **method)(operator, x, target)
    gradients = {name: p.grad for name, p in operator.field.named_parameters()}
    return report, gradients | {"alpha": learnt.grad}


@pytest.mark.parametrize("gradient", GUIDANCE_GRADIENTS)
@pytest.mark.parametrize("signal", OF_STRUCTURES)
def test_training_step(device, signal, gradient):
    """With fixed atoms, and a step that is learnt."""
    if signal == "coupled" and gradient != "sweep":
        pytest.skip("it has the sweep alone")
    method = TIGHT | ({} if signal == "implicit" else {"guidance_gradient": gradient})
    found, expected = step(signal, method, device), step(signal, method, CPU)
    assert_on(device, found)
    assert_same(found, expected, **CLOSE)
    assert all(grad.norm() > 0 for grad in expected[1].values())
    if signal in ("gdeq", "implicit"):
        assert expected[0].contributing.all()


@pytest.mark.parametrize("signal", OF_STRUCTURES)
def test_a_structure_that_diverges_is_left_out(device, signal):
    found, expected = step(signal, TIGHT, device, lost=1), step(signal, TIGHT, CPU, lost=1)
    assert expected[0].diverged.tolist() == [False, True, False]
    assert_same(found, expected, **CLOSE)
    assert all(torch.isfinite(grad).all() for grad in expected[1].values())


def test_other_plain_steps(device):
    """With momentum and annealing, and a factor of alpha that a network decodes."""
    found, expected = (
        step("gdeq", TIGHT, where, descent=Descent(0.3, 0.9, StepDecoder(4).to(where)))
        for where in (device, CPU)
    )
    assert_on(device, found)
    assert_same(found, expected, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [{"hold_graph": True}, {"adjoint": GMRES(tol=1e-8, damping=0.05)}, {"fmax": 0.02}],
)
def test_other_settings_of_a_step(device, options):
    method = TIGHT | options
    assert_same(step("gdeq", method, device), step("gdeq", method, CPU), **CLOSE)


def test_solver_that_knows_bonds(device):
    ends = []
    for where in (device, CPU):
        operator, x, _ = random_batch("site", SIZES, device=where, fixed=[1], conservative=True)
        numbers = torch.tensor([6, 8, 1, 1, 7, 22, 22, 1, 1], device=where)
        operator = replace(operator, structures=replace(operator.structures, numbers=numbers))
        ends.append(solve(operator, 0.4 * x, LBFGS(softest=5.0, bonds=3.5), 1e-3, max_steps=60))
    assert_on(device, ends[0])
    assert_same(*ends, **CLOSE)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kind", ["site", "pair"])
def test_solver(device, name, kind):
    """Every number, those of the steps exactly.

    Anderson's least-squares problem turns differences of 1e-16 into 1e-6 within twenty steps, so it gets
    few.
    """
    ends = []
    for where in (device, CPU):
        batch = {"device": where, "alpha": 0.3, "cap": 0.2, "fixed": [1], "conservative": True}
        operator, x, _ = random_batch(kind, SIZES, **batch)
        ends.append(solve(operator, x, WAYS[name], 1e-3, max_steps=8 if name == "anderson" else 60))
        assert_on(where, ends[-1])
    assert_same(*ends, **CLOSE)
    assert ends[1].steps.max() > 5
    if kind == "site" and name != "anderson":
        assert ends[1].converged.any()


@pytest.mark.parametrize("guessed", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("name", ADJOINTS)
def test_adjoint(device, name, damping, guessed):
    answers = []
    settings = {} if name == "identity" else {"tol": 1e-6, "max_vjps": 100, "damping": damping}
    adjoint = ADJOINTS[name](**settings)
    for where in (device, CPU):
        operator, x, target = random_batch("site", SIZES, device=where, alpha=0.2, fixed=[1])
        guess = 0.1 * target if guessed else None
        answers.append(adjoint(operator, x, target - x, guess))
        assert_on(where, answers[-1])
    assert_same(*answers, **CLOSE)
    # The series of eq. 4 would need more than the hundred VJPs that it has.
    assert answers[1].converged.all() or (name == "neumann" and not damping)


def outcomes(device, budget):
    """Structures that join while others leave; the third one diverges."""
    operator, x, _ = random_batch("site", [4, 1, 5, 3, 2, 4], device=device, alpha=0.2)
    s = operator.structures
    x = torch.where((s.batch == 2)[:, None], 1e6, x)
    course = Relaxer(2, LBFGS(), 1e-4, 30)

    def requests():
        for key in range(s.count):
            mask = torch.arange(s.count, device=device) == key
            yield Request(key, operator.select(mask), x[s.atoms_of(mask)])

    return {str(end.key): end for end in Stream(requests(), course, budget)}


@pytest.mark.parametrize("budget", [1, 9])
def test_stream(device, budget):
    found, expected = outcomes(device, budget), outcomes(CPU, budget)
    assert_on(CPU, found)  # the ends come to the host
    assert_same({key: found[key] for key in expected}, expected, **CLOSE)
    assert expected["2"].diverged and sum(end.diverged for end in expected.values()) == 1


def test_stream_splits_its_pack_when_memory_runs_out(device):
    """The error is PyTorch's own, for any accelerator."""

    class Poor(torch.nn.Module):
        translation_invariant = False

        def __init__(self, field):
            super().__init__()
            self.field = field

        def forward(self, x):
            if len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.field(x)

        def select(self, structures):
            return Poor(self.field.select(structures))

        def join(self, others):
            return Poor(self.field.join([other.field for other in others]))

    ends = []
    for where, budget in ((device, 100), (CPU, 5)):
        operator, x, _ = random_batch("site", SIZES, device=where, alpha=0.2)
        s = operator.structures
        poor = replace(operator, field=Poor(operator.field))
        masks = [torch.arange(s.count, device=where) == k for k in range(s.count)]
        starts = [Request(k, poor.select(m), x[s.atoms_of(m)]) for k, m in enumerate(masks)]
        course = Relaxer(2, LBFGS(), 1e-4, 30)
        ends.append({str(end.key): end for end in Stream(starts, course, budget)})
    assert_same({key: ends[0][key] for key in ends[1]}, ends[1], **CLOSE)
    assert all(end.fitted for end in ends[0].values())


@pytest.mark.parametrize("length", [None, 6.0])
@pytest.mark.parametrize("removed", [[True, False, True], [False] * 3])
def test_delta_q_and_its_gradient(device, length, removed):
    """Periodic and not, with targets several cells away, and with the rigid shift taken out."""
    results = []
    for where in (device, CPU):
        s = structures(SIZES, fixed=[1], length=length).on(where)
        generator = torch.Generator().manual_seed(0)
        places = torch.randn(2, sum(SIZES), 3, generator=generator).to(where)
        x, target = places[0].requires_grad_(True), places[1] + 11.0
        pin = torch.tensor(removed, device=where)
        losses = delta_q(x, target, s, pin)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        results.append((losses, gradient, max_displacement(x, target, s, pin)))
        assert_on(where, results[-1])
    assert_same(*results, **CLOSE)
    assert (results[1][0] > 0).all()


@pytest.mark.parametrize("remove_drift", [None, False])
def test_operator_and_its_vjp(device, remove_drift):
    """With a cap, and with the drift of a translation-invariant field removed."""
    results = []
    for where in (device, CPU):
        options = {"alpha": 0.3, "cap": 0.05, "remove_drift": remove_drift, "length": 9.0}
        operator, x, target = random_batch("pair", SIZES, device=where, fixed=[5], **options)
        mask = torch.tensor([True, False, True], device=where)
        part, atoms = operator.select(mask), operator.structures.atoms_of(mask)
        again = part.join([operator.select(~mask)])
        results.append(
            (
                operator(x),
                operator.vjp(x, target - x),
                part(x[atoms]),
                again.pin,
                again.structures.batch,
            )
        )
        assert_on(where, results[-1])
    assert_same(*results, **CLOSE)
    assert results[1][3].any() == (remove_drift is None)


def test_operators_with_different_steps_are_told_apart(device):
    operator, x, _ = random_batch("site", [2], device=device)
    other = Operator.build(operator.field, operator.structures, 0.7)
    with pytest.raises(ValueError, match="different maps"):
        operator.join([other])
