"""A metric from outside the package: in the records, the scores, the file and the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.metric import METRICS, Column, Metric, add_metrics, register_metric
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.records import Label, Record, to_rows
from fairchem_gdeq.evaluation.report import report
from fairchem_gdeq.evaluation.table import print_table
from fairchem_gdeq.relax import Structures
from fairchem_gdeq.training.history import History
from tests.records import RECORD

WORST = Metric(
    "delta_q_worst",
    "amu^0.5 A",
    lambda columns, basin: float(columns["delta_q"].max()),
    Column(lambda basin: f"worst\n(>{basin.delta_q:g})", "{:.2f}"),
)
# The largest |z| by which an atom is off: nothing that a record says by itself.
LIFT = Metric(
    "lift",
    "A",
    lambda columns, basin: float(np.max(columns["lift"])),
    Column("lift\n(A)", "{:.3f}"),
    measure=lambda relaxed: torch.stack(
        [
            relaxed.move[relaxed.structures.batch == i, 2].abs().max()
            for i in range(relaxed.structures.count)
        ]
    ),
)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The list of metrics comes back afterwards; tables are as wide as they like."""
    monkeypatch.setenv("COLUMNS", "200")
    known = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(known)


def measured() -> list[Record]:
    """Two structures of one atom, 0.3 and 0.1 Angstrom above their targets and aside of them."""
    s = Structures(
        batch=torch.arange(2),
        free=torch.ones(2, dtype=torch.bool),
        masses=torch.ones(2),
        cell=torch.eye(3).expand(2, 3, 3) * 9.0,
        pbc=torch.ones(2, 3, dtype=torch.bool),
    )
    target = torch.ones(2, 3, dtype=torch.float64)
    moved = target + torch.tensor([[0.2, 0.0, 0.3], [0.5, 0.0, -0.1]], dtype=torch.float64)
    never = torch.zeros(2, dtype=torch.bool)
    labels = [Label("p", 0), Label("q", 1)]
    return measure(labels, moved, target, s, never, never, never, never.long(), never.double())


def headings(scores, capsys) -> tuple[str, str]:
    """The last line of the table's head, and all of the table."""
    print_table("test", scores, History(), Basin())
    shown = capsys.readouterr().out
    return next(line for line in shown.splitlines() if "model" in line), shown


def test_a_summary_from_outside_is_in_scores_and_table(capsys):
    rows = [RECORD, replace(RECORD, sid="b", delta_q=7.25)]
    before = summarise(rows, Basin())
    assert "worst" not in headings({"base": before}, capsys)[1]
    register_metric(WORST)
    after = summarise(rows, Basin())
    assert after == before | {"delta_q_worst": 7.25}
    assert list(after) == [*before, "delta_q_worst"]
    head, shown = headings({"base": after}, capsys)
    # After the structures' metrics, before those of the relaxation; from the basin and the format.
    assert head.index("ADwT") < head.index("(>2)") < head.index("conv.")
    assert "worst" in shown and " 7.25 " in shown


def test_a_measure_from_outside_is_in_records_scores_file_and_table(tmp_path, capsys):
    plain = measured()
    register_metric(LIFT)
    records = measured()
    assert [r.others["lift"] for r in records] == pytest.approx([0.3, 0.1])
    assert [replace(r, others={}) for r in records] == plain
    report("test", tmp_path, "gdeq", Basin(), {"unrelaxed": records}, None, History())
    stored = json.loads((tmp_path / "test.json").read_text())
    assert stored["scores"]["unrelaxed"]["lift"] == pytest.approx(0.3)
    assert [r["lift"] for r in stored["records"]["unrelaxed"]] == pytest.approx([0.3, 0.1])
    assert "lift" in (shown := capsys.readouterr().out) and " 0.300 " in shown


def test_a_metric_is_named_by_its_path():
    path = f"{__name__}.WORST"
    add_metrics([path])
    assert METRICS["delta_q_worst"] is WORST
    add_metrics([path, path])  # as a second run in one process
    for wrong, found in (
        (f"{__name__}.BEST", "nothing is there"),
        (f"{__name__}.RECORD", "expected a Metric, found Record"),
        ("worst", "nothing is there"),
    ):
        with pytest.raises(ValueError, match=found):
            add_metrics([wrong])


def test_records_without_further_measures_are_written_as_their_fields():
    (row,) = to_rows([RECORD])
    assert list(row) == [name for name in RECORD.__dataclass_fields__ if name != "others"]


def test_a_metric_that_cannot_be_given_is_left_out(capsys):
    register_metric(replace(WORST, summarise=lambda columns, basin: None))
    scores = summarise([RECORD], Basin())
    assert "delta_q_worst" not in scores
    assert "worst" not in headings({"base": scores}, capsys)[1]


def test_convergence_does_not_apply_where_nothing_was_relaxed(capsys):
    never = summarise([replace(RECORD, evaluations=0, converged=False)], Basin())
    (line,) = (s for s in headings({"X_0": never}, capsys)[1].splitlines() if "X_0" in s)
    assert [cell.strip() for cell in line.split("│")[-4:-1]] == ["-", "-", "0.0"]


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="there is a metric basins"):
        register_metric(replace(WORST, name="basins"))
    with pytest.raises(ValueError, match="every record has a field"):
        register_metric(replace(LIFT, name="delta_q"))
    assert "delta_q" not in METRICS
