"""What the comparisons with other packages count, keep and fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import first_guess
from benchmarks.peers import adjoint_systems, with_ase, with_torch_sim
from benchmarks.peers.kept import Kept, NotInstalled, not_installed
from benchmarks.peers.numbers import exponent, spread, turned
from benchmarks.peers.relaxations import cells, in_flight, same_minimum, timed
from fairchem_gdeq.relax import FIRE, LBFGS, Relaxer, solve
from fairchem_gdeq.testing.fields import dense_jacobian, random_batch, structures


def test_spread_gives_median_least_and_most():
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert spread([]) == "-"


def test_each_item_has_each_place_once():
    turns = [turned(["a", "b", "c"], k) for k in range(3)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert turned(["a", "b"], 5) == ["b", "a"]


def test_exponent_of_a_power_law():
    sizes = [64, 216, 512]
    power, error = exponent(sizes, [0.3 * n**1.5 for n in sizes])
    assert power == pytest.approx(1.5) and error == pytest.approx(0.0, abs=1e-8)


def test_exponent_and_error_are_those_of_numpy():
    sizes, values = [1.0, 2.0, 4.0, 8.0], [1.0, 2.3, 3.7, 9.0]
    power, error = exponent(sizes, values)
    line, covariance = np.polyfit(np.log(sizes), np.log(values), 1, cov=True)
    assert power == pytest.approx(line[0])
    assert error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_two_points_have_an_exponent_without_an_error():
    power, error = exponent([1, 10], [1, 100])
    assert power == pytest.approx(2.0) and np.isnan(error)


@pytest.mark.parametrize(("sizes", "values"), [([8, 8], [1, 2]), ([1, 2], [0, 1])])
def test_no_exponent_without_two_sizes_or_of_zero(sizes, values):
    with pytest.raises(ValueError, match=r"different|positive"):
        exponent(sizes, values)


def test_what_is_kept_is_not_measured_again(tmp_path):
    path, settings = tmp_path / "new" / "kept.jsonl", {"fmax": 0.02}
    assert Kept(path, settings)("a", lambda: {"wall": 1.5}) == {"wall": 1.5}
    again = Kept(path, settings)
    assert again("a", lambda: pytest.fail("measured again")) == {"wall": 1.5}
    assert again("b", lambda: {"wall": 2.0}) == {"wall": 2.0}
    assert Kept(path, settings).known.keys() == {"a", "b"}


def test_a_line_that_was_cut_off_is_measured_again_and_harms_no_other(tmp_path):
    path = tmp_path / "kept.jsonl"
    kept = Kept(path, {})
    kept("a", lambda: {"wall": 1.0})
    kept("b", lambda: {"wall": 2.0})
    path.write_text(path.read_text()[:-8])
    after = Kept(path, {})
    assert after.known == {"a": {"wall": 1.0}}
    after("b", lambda: {"wall": 3.0})
    assert Kept(path, {}).known["b"] == {"wall": 3.0}


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path, {"fmax": 0.02, "structures": 8})
    with pytest.raises(SystemExit, match=r"other settings \(fmax\).*--folder"):
        Kept(path, {"fmax": 0.05, "structures": 8})


def test_a_missing_package_is_one_sentence_that_says_how_to_get_it():
    with pytest.raises(NotInstalled, match=r"torchdeq .*pip install -e \.\[peers\]"):
        not_installed("torchdeq", ImportError("no module"))


def alone(pin: int = 0, fixed: list[int] | None = None) -> SimpleNamespace:
    """What ``same_minimum`` reads of an operator: three atoms in a cell of 5 Angstrom."""
    return SimpleNamespace(
        structures=structures([3], fixed=fixed, length=5.0), pin=torch.tensor([pin])
    )


def ended(*positions: list, converged: bool = True) -> dict:
    return {
        "positions": [np.asarray(x).tolist() for x in positions],
        "converged": [converged] * len(positions),
    }


X = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 3.0, 1.0]])
ONE, ALL = np.eye(3, 1), np.ones((3, 1))  # the first atom, and all
NEAR, FAR = X + ONE * np.array([0.0, 0.0, 0.05]), X + ONE * np.array([0.0, 0.3, 0.0])


def test_ends_are_the_same_within_a_distance():
    operators = [alone()] * 2
    assert same_minimum(ended(NEAR, FAR), ended(X, X), operators, 0.1) == (1, 2)
    assert same_minimum(ended(NEAR, FAR), ended(X, X), operators, 0.5) == (2, 2)


def test_periodic_images_are_the_same_and_rigid_shifts_where_they_do_not_count():
    image, shift = X + ALL * np.array([5.0, 0.0, -10.0]), X + ALL * np.array([0.4, 0.4, 0.0])
    assert same_minimum(ended(image), ended(X), [alone()], 0.1) == (1, 1)
    assert same_minimum(ended(shift), ended(X), [alone()], 0.1) == (0, 1)
    assert same_minimum(ended(shift), ended(X), [alone(pin=1)], 0.1) == (1, 1)


def test_fixed_atoms_do_not_count():
    assert same_minimum(ended(FAR), ended(X), [alone(fixed=[0])], 0.1) == (1, 1)


def test_what_did_not_converge_is_in_no_minimum_and_no_reference():
    assert same_minimum(ended(X, converged=False), ended(X), [alone()], 0.1) == (0, 1)
    assert same_minimum(ended(X), ended(X, converged=False), [alone()], 0.1) == (0, 0)


def test_a_row_has_spreads_over_structures_and_repeats():
    runs = [
        {"wall": w, "cpu": 1.0, "evaluations": [4, 8], "converged": [True, False]} for w in (2, 6)
    ]
    row = cells(runs, (1, 2), None).split(" | ")
    assert row[:3] == ["6 (4 to 8)", "6.0", ""] and row[4] == "2.00 (1.00 to 3.00)"
    assert row[5:] == ["1 of 2", "1 of 2 (50%)"]
    ours = runs[0] | {"evaluations": [2, 2]}  # a half and a quarter
    assert cells(runs, (1, 2), ours).split(" | ")[2] == "2.83 (2.00 to 4.00)"


def problem(sizes: tuple[int, ...] = (4, 3)):
    """Operators of single structures, their starts and atomic numbers; a field with one minimum."""
    whole, x, _ = random_batch("site", list(sizes), conservative=True, fixed=[1], length=50.0)
    each = torch.eye(len(sizes), dtype=torch.bool)
    numbers = [torch.full((n,), 14) for n in sizes]
    return [whole.select(one) for one in each], list(x.split(list(sizes))), numbers


def test_ends_of_a_stream_come_in_order_with_their_numbers():
    operators, starts, _ = problem()
    ends = in_flight(operators, starts, Relaxer(0, FIRE(), 0.01, 500), 100)
    assert [len(end.positions) for end in ends] == [4, 3]
    assert all(end.converged and end.evaluations > 2 for end in ends)
    found = timed(lambda: ends)
    assert found["evaluations"] == [end.evaluations for end in ends] and json.dumps(found)


@pytest.mark.parametrize("name", list(with_ase.OPTIMIZERS))
def test_ase_finds_our_minimum_and_leaves_fixed_atoms(name):
    operators, starts, numbers = problem()
    ours = in_flight(operators, starts, Relaxer(0, LBFGS(), 1e-3, 500), 100)
    theirs = with_ase.one_at_a_time(name, operators, starts, numbers, 1e-3, 500)
    assert all(end.converged for end in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.positions.double(), b.positions, atol=1e-2, rtol=0)
    assert torch.equal(theirs[0].positions[1].float(), starts[0][1])


def test_work_of_conservative_forces_is_a_difference_of_energies():
    import ase

    start = torch.zeros(2, 3, dtype=torch.float64)
    calculator = with_ase.WorkCalculator(lambda x: -3.0 * x, start)  # energy 3/2 x^2
    atoms = ase.Atoms("Si2", positions=start.numpy(), calculator=calculator)
    atoms.get_forces()
    for end in ([[1.0, 0, 0], [0, 2.0, 0]], [[0.5, 0, 0], [0, -1.0, 0]]):
        atoms.positions = end
        assert atoms.get_potential_energy() == pytest.approx(1.5 * (atoms.positions**2).sum())


def test_torch_sim_finds_our_minimum():
    if with_torch_sim.MISSING is not None:
        with pytest.raises(NotInstalled):
            with_torch_sim.relax("torch-sim FIRE", *problem(), 1e-3, 500, 5)
        return
    operators, starts, numbers = problem((4, 3, 2))
    ours = in_flight(operators, starts, Relaxer(0, LBFGS(), 1e-3, 500), 100)
    # A budget for two at most, so that some wait.
    theirs = with_torch_sim.relax("torch-sim FIRE", operators, starts, numbers, 1e-3, 500, 7)
    assert all(end.converged and end.evaluations > 2 for end in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.positions, b.positions, atol=1e-2, rtol=0)


def adjoint_problem(kind: str, **options: object):
    torch.set_default_dtype(torch.float64)  # given back after each test
    out = []
    for seed in range(2):
        operator, x, g = random_batch(
            kind, [4], seed=seed, fixed=[1] if kind == "site" else None, **options
        )
        g = operator.project(g, x)
        out.append(adjoint_systems.System(operator, x, g / g.norm()))
    return adjoint_systems, out


@pytest.mark.parametrize("kind", ["site", "pair"])
@pytest.mark.parametrize("name", ["gmres_alone", "gmres_batched", "dense"])
def test_our_solvers_of_the_adjoint_system(kind, name):
    module, systems = adjoint_problem(kind)
    found = module.measure(getattr(module, name), systems, 1e-8, 100)
    assert max(found["residual"]) < 1e-7 and min(found["vjps"]) > 0


@pytest.mark.parametrize("name", ["fixed_point_iter", "anderson", "broyden"])
def test_torchdeq_solves_the_same_system(name):
    # A contraction, which plain iteration needs.
    module, systems = adjoint_problem("site", conservative=True)
    try:
        found = module.torchdeq(name, systems, 1e-4, 2000)
    except NotInstalled:
        pytest.skip("no torchdeq")
    exact = module.dense(systems, 0.0, 0)
    for a, b in zip(found, exact, strict=True):
        assert 1 < a.vjps < 2000
        torch.testing.assert_close(a.w, b.w, atol=5e-3, rtol=0)


def test_the_hessian_as_first_guess():
    torch.set_default_dtype(torch.float64)  # given back after each test
    operator, start, _ = random_batch("site", [4], conservative=True, fixed=[1], length=50.0)
    end = solve(operator, start, LBFGS(), 1e-6).positions
    free = operator.structures.free
    found = first_guess.hessian(operator, end)
    both = free.repeat_interleave(3)
    expected = (torch.eye(12) - dense_jacobian(operator, end)) / operator.alpha
    torch.testing.assert_close(found[both][:, both], expected[both][:, both], atol=1e-3, rtol=1e-3)
    assert not found[~both].any() and not found[:, ~both].any()

    near = torch.where(free[:, None], end + 1e-3, end)
    known = first_guess.guessed(found, free, 0.0)
    with_hessian, without = (solve(operator, near, each, 1e-6) for each in (known, LBFGS()))
    assert with_hessian.evaluations.item() <= 3 < without.evaluations.item()
    torch.testing.assert_close(with_hessian.positions, end, atol=1e-5, rtol=0)
    assert torch.equal(with_hessian.positions[~free], near[~free])


def test_what_counts_for_the_first_guess_are_sizes_of_eigenvalues_and_a_floor():
    free = torch.tensor([True])
    known = first_guess.guessed(torch.diag(torch.tensor([-4.0, 0.0, 9.0])), free, 1.0)
    torch.testing.assert_close(known.root.diagonal(), torch.tensor([2.0, 1.0, 3.0]))
    torch.testing.assert_close(known.root @ known.inverse, torch.eye(3))
