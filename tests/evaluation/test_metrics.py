"""Scores against hand-made cases."""

import io
from dataclasses import field, fields, make_dataclass, replace

import numpy as np
import pytest
import torch
from rich.console import Console

from fairchem_gdeq.evaluation import measures
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.leaderboard import ADWT_THRESHOLDS
from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.records import Label, Record, each_once
from fairchem_gdeq.evaluation.table import print_table
from fairchem_gdeq.relax import Cause, Structures
from fairchem_gdeq.training.history import History
from tests.records import RECORD


def test_measure_is_the_plain_formula():
    generator = np.random.default_rng(0)
    sizes, cell = [3, 4], 6.0
    x = generator.uniform(0, cell, (7, 3))
    move = generator.normal(scale=0.1, size=(7, 3))
    masses = generator.uniform(1, 30, 7)
    free = np.array([1, 0, 1, 1, 1, 1, 1], dtype=bool)
    structures = Structures(
        batch=torch.repeat_interleave(torch.arange(2), torch.tensor(sizes)),
        free=torch.as_tensor(free),
        masses=torch.as_tensor(masses),
        cell=(torch.eye(3) * cell).expand(2, 3, 3).clone().double(),
        pbc=torch.ones(2, 3, dtype=torch.bool),
    )
    wrapped = (x + move) % cell
    flags = torch.tensor([True, False])
    records = measure(
        [Label("p", 4), Label("q", 2)],
        torch.as_tensor(wrapped),
        torch.as_tensor(x),
        structures,
        pin=torch.zeros(2, dtype=torch.bool),
        converged=flags,
        cause=torch.tensor([Cause.NONE, Cause.EXPLODED]),
        evaluations=torch.tensor([3, 4]),
        residual=torch.tensor([0.1, 0.2], dtype=torch.float64),
    )
    for k, rows in enumerate((slice(0, 3), slice(3, 7))):
        d, m = move[rows][free[rows]], masses[rows][free[rows]]
        lengths = np.linalg.norm(d, axis=1)
        assert records[k].delta_q == pytest.approx(np.sqrt((m * lengths**2).sum()))
        assert records[k].max_displacement == pytest.approx(lengths.max())
        assert records[k].mean_distance == pytest.approx(lengths.mean())
        assert records[k].mae == pytest.approx(np.abs(d).mean())
        # The cell is right-angled and nothing is pinned: fairchem's distances are the same ones.
        plain = (wrapped - x)[rows][free[rows]]
        assert records[k].leaderboard_distance == pytest.approx(lengths.mean())
        assert records[k].leaderboard_mae == pytest.approx(np.abs(plain).mean())
        assert records[k].leaderboard_mse == pytest.approx((plain**2).mean())
    assert [(r.sid, r.row) for r in records] == [("p", 4), ("q", 2)]
    assert [r.converged for r in records] == [True, False]
    assert [r.diverged for r in records] == [False, True]
    assert [r.cause for r in records] == ["none", "exploded"]
    assert [r.evaluations for r in records] == [3, 4]
    assert [r.residual for r in records] == [0.1, 0.2]
    assert [r.free_atoms for r in records] == [2, 4]
    assert [r.shift_removed for r in records] == [0.0, 0.0]
    assert [r.reference_force for r in records] == [None, None]


def test_the_shift_that_is_taken_out_is_told():
    """Two structures slid by 0.5 and 0.2 Angstrom along x; the second one is not pinned."""
    s = Structures(
        batch=torch.tensor([0, 0, 1]),
        free=torch.ones(3, dtype=torch.bool),
        masses=torch.tensor([1.0, 2.0, 3.0]),
        cell=torch.eye(3).expand(2, 3, 3) * 5.0,
        pbc=torch.ones(2, 3, dtype=torch.bool),
    )
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)) * 5
    moved = x + torch.tensor([[0.5, 0, 0], [0.5, 0, 0], [0.2, 0, 0]])
    never = torch.zeros(2, dtype=torch.bool)
    told = measure(
        [Label("p", 0), Label("q", 1)],
        moved,
        x,
        s,
        torch.tensor([1, 0]),
        never,
        never,
        never,
        never,
    )
    assert [r.shift_removed for r in told] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert [r.max_displacement for r in told] == pytest.approx([0.0, 0.2], abs=1e-6)
    assert summarise(told, Basin())["shift_removed"] == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("diverged", [True, False])
@pytest.mark.parametrize(("start", "end"), [(0.1, 0.4), (0.4, 0.1)])
def test_one_that_diverged_is_no_nearer_than_it_began(diverged, start, end):
    """Its last finite positions may be its start, or anywhere."""
    s = Structures(
        batch=torch.tensor([0]),
        free=torch.ones(1, dtype=torch.bool),
        masses=torch.tensor([4.0]),
        cell=torch.eye(3)[None] * 5.0,
        pbc=torch.ones(1, 3, dtype=torch.bool),
    )
    target = torch.zeros(1, 3)
    along = torch.tensor([[1.0, 0.0, 0.0]])
    cause, never = Cause.NOT_FINITE if diverged else Cause.OUT_OF_STEPS, torch.tensor([False])
    how = {"converged": never, "evaluations": never, "residual": never}
    how["cause"] = torch.tensor([cause])
    pin = torch.tensor([False])
    label = [Label("p", 0)]
    (found,) = measure(label, end * along, target, s, pin, **how, start=start * along)
    expected = max(start, end) if diverged else end
    assert found.delta_q == pytest.approx(2 * expected)
    assert found.max_displacement == pytest.approx(expected)


@pytest.mark.parametrize("apart", [0.4, 0.6])
def test_atoms_that_fell_into_one_are_no_structure(apart):
    """However small the forces there are, and however near the target is."""
    s = Structures(
        batch=torch.tensor([0, 0, 1]),
        free=torch.ones(3, dtype=torch.bool),
        masses=torch.ones(3),
        cell=torch.eye(3).expand(2, 3, 3) * 5.0,
        pbc=torch.ones(2, 3, dtype=torch.bool),
    )
    target = torch.tensor([[0.2, 0.0, 0.0], [4.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    end = target.clone()
    end[1, 0] = 5.2 - apart  # through the wall of the cell
    yes = torch.tensor([True, True])
    how = {"converged": yes, "cause": torch.zeros(2, dtype=torch.int8)}
    how |= {"evaluations": yes.long(), "residual": yes.double()}
    labels = [Label("p", 0), Label("q", 1)]
    first, second = measure(labels, end, target, s, ~yes, **how, start=target)
    fell = apart < 0.5
    assert (first.cause, first.diverged, first.converged) == (
        ("collapsed", True, False) if fell else ("none", False, True)
    )
    assert second.converged and second.cause == "none"


def test_summary():
    rows = [
        RECORD,
        replace(RECORD, sid="b", delta_q=2.5, max_displacement=0.4, mean_distance=0.3),
        replace(
            RECORD,
            sid="c",
            delta_q=9.0,
            mean_distance=0.6,
            converged=False,
            diverged=True,
            cause="exploded",
        ),
    ]
    s = summarise(rows, Basin(delta_q=2.0, displacement=0.3))
    assert s["delta_q_mean"] == pytest.approx(12.5 / 3)
    assert s["delta_q_total"] == pytest.approx(12.5)
    assert s["basins"] == pytest.approx(1 / 3)
    assert s["basins_displacement"] == pytest.approx(1 / 3)  # the diverged one is nowhere
    assert s["basins_paper"] == pytest.approx(2 / 3)
    near = replace(RECORD, diverged=True, converged=False)
    gone = summarise([near], Basin())
    assert gone["adwt"] == gone["average_distance_within_threshold"] == 0
    assert [gone[key] for key in ("basins", "basins_displacement", "basins_paper")] == [0, 0, 0]
    known = replace(near, reference_force=0.001, reference_energy=0.0)
    gone = summarise([known], Basin())
    assert [gone[key] for key in ("fbt", "afbt", "reference_within")] == [0, 0, 0]
    there = summarise([replace(known, diverged=False)], Basin())
    assert [there[key] for key in ("fbt", "afbt", "reference_within")] == [1, 1, 1]
    assert s["converged"] == pytest.approx(2 / 3) and s["diverged"] == pytest.approx(1 / 3)
    assert s["exploded"] == pytest.approx(1 / 3) and s["not_finite"] == s["out_of_steps"] == 0
    # ADwT: the share of (structure, threshold) pairs with the mean distance below the threshold.
    above = [(d < ADWT_THRESHOLDS).sum() for d in (0.1, 0.3, 0.6)]
    assert s["adwt"] == pytest.approx(sum(above) / (3 * len(ADWT_THRESHOLDS)))
    assert "fbt" not in s and "afbt" not in s
    with pytest.raises(ValueError, match="no structures"):
        summarise([], Basin())


def test_summary_pools_coordinates_and_counts_forces_of_all_structures():
    rows = [
        replace(RECORD, reference_force=0.03),
        replace(RECORD, free_atoms=15, leaderboard_mae=0.25, leaderboard_mse=0.09),
    ]
    s = summarise(rows, Basin())
    assert s["positions_mae"] == pytest.approx((5 * 0.05 + 15 * 0.25) / 20)
    assert s["positions_mse"] == pytest.approx((5 * 0.01 + 15 * 0.09) / 20)
    assert "fbt" not in s  # one structure has no reference force
    rows[1] = replace(rows[1], reference_force=0.2)
    s = summarise([*rows, replace(RECORD, reference_force=float("inf"))], Basin())
    assert s["fbt"] == pytest.approx(1 / 3)
    # Of the 390 thresholds 0.010, 0.011, ..., 0.399, those above 0.03 and above 0.2, give or take
    # the one that equals it.
    assert s["afbt"] == pytest.approx((369 + 199) / (3 * 390), abs=2 / (3 * 390))


def test_reference_energies_are_averaged_where_they_are_known():
    rows = [replace(RECORD, reference_energy=e) for e in (-0.3, 0.05, 0.1, 0.4, float("inf"))]
    s = summarise(rows, Basin())
    assert s["reference_energy"] == pytest.approx(0.25 / 4)
    assert s["reference_within"] == pytest.approx(3 / 5)  # what failed is not within
    assert "reference_energy" not in summarise([*rows, RECORD], Basin())
    failed = summarise(rows[-1:], Basin())
    assert "reference_energy" not in failed and failed["reference_within"] == 0


def test_a_record_is_not_built_by_position(monkeypatch):
    """The order of its fields is nobody's business: columns that change places would shift."""
    backwards = [(f.name, f.type, field(default=None)) for f in fields(Record)[::-1]]
    monkeypatch.setattr(measures, "Record", make_dataclass("Record", backwards))
    test_measure_is_the_plain_formula()


def test_repeats_of_a_row_count_once_and_rows_of_one_name_each():
    labels = [("c", 3), ("a", 1), ("b", 2), ("a", 1), ("a", 0), ("c", 3)]
    found = each_once([replace(RECORD, sid=sid, row=row) for sid, row in labels])
    assert [(r.sid, r.row) for r in found] == [("a", 0), ("a", 1), ("b", 2), ("c", 3)]


def test_a_table_that_is_too_wide_becomes_two_and_cuts_nothing_off():
    rows = [replace(RECORD, reference_force=0.03, reference_energy=0.0512)]
    scores = {"base": summarise(rows, Basin()) | {"force_mae": 0.0234}}
    printed = []
    for width in (130, 200):
        text = io.StringIO()
        print_table("val", scores, History(), Basin(), console=Console(file=text, width=width))
        printed.append(text.getvalue())
        assert "…" not in text.getvalue()
        assert "+0.051" in text.getvalue() and "0.0234" in text.getvalue()
    assert [text.count("┃ model") for text in printed] == [2, 1]
