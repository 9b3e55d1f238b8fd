"""The page of a run: what is on it, from what, and that names stay text."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from fairchem_gdeq.evaluation import report as reporting
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.scoring import BASE, TUNED, UNRELAXED
from fairchem_gdeq.page import curves, scatter
from fairchem_gdeq.page.outcome import write_report
from fairchem_gdeq.page.write import HERE, NAME, SCRIPTS, bundled, write_page
from fairchem_gdeq.training.history import History
from tests.page.outcomes import EVIL, history, outcome, records
from tests.records import RECORD


def embedded(text, which):
    """The data of a page's figure, or of its structures, as its scripts read them."""
    (found,) = re.findall(
        rf'<script type="application/json" {which}>(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_report(folder, NAME, outcome(folder)).read_text()


def test_the_table_and_its_conclusions_are_on_the_page(page, tmp_path, capsys):
    o = outcome(tmp_path)
    cells = [unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", page, re.DOTALL)]
    assert cells[:2] == ["model", "Delta Q\nmean"]
    first = cells.index(TUNED)
    assert cells[first + 1] == f"{o.scores[TUNED]['delta_q_mean']:.3f}"
    assert unescape(page).count(f"tuned against base, {o.comparison}") == 1
    assert o.history.outcome in page
    # One nearer and into its basin, by hand: 4 to 1, 3 to 0.2; out of it 1.5 to 3.5.
    changed = cells[cells.index("which") + 1 :]
    assert changed[:2] == ["nearer by more than 0.02", "4"]
    assert changed[6:12] == ["right basin gained", "2", f"e, {EVIL}", "right basin lost", "1", "b"]


def test_names_stay_text(page):
    assert EVIL not in page and "<img" not in page
    names = {each["name"] for each in embedded(page, 'id="structures"')}
    assert EVIL in names
    figure = embedded(page, 'data-figure="pairs"')
    texts = [text for trace in figure["data"] for text in trace.get("text", [])]
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in texts  # what plotly shows as it was


def test_the_viewer_gets_what_was_chosen(page, tmp_path):
    o = outcome(tmp_path)
    structures = embedded(page, 'id="structures"')
    assert [each["row"] for each in structures] == list(o.why)
    kinds = [each["about"].partition(":")[0] for each in structures]
    assert kinds == sorted(
        kinds, key=["gained", "lost", "nearer", "farther", "best", "worst"].index
    )
    for each, given in zip(structures, o.overlays, strict=True):
        assert list(each["places"]) == [UNRELAXED, BASE, TUNED, "target"]
        assert each["symbols"] == ["Si", "Ge", *["Si"] * 6]
        for name, positions in {**given.places, "target": given.target}.items():
            np.testing.assert_allclose(each["places"][name]["positions"], positions, atol=6e-4)
    lost = structures[kinds.index("lost")]
    assert lost["about"] == "lost: ΔQ base 1.50, tuned 3.50"


def test_a_page_needs_nothing_else(page):
    assert "default-src 'none'" in page
    assert re.findall(r"<(?:link|iframe|script[^>]*\ssrc)", page) == []
    for name in SCRIPTS:
        text = bundled(name)
        assert text.count("</script") == 1  # the end of the element alone
        assert len(text) > 100_000 and text in page


def test_base_alone_has_a_page_too(tmp_path):
    o = outcome(tmp_path)
    rows = (UNRELAXED, BASE)
    o = replace(
        o,
        records={title: o.records[title] for title in rows},
        scores={title: o.scores[title] for title in rows},
        history=History(),
        comparison=None,
        overlays=[],
    )
    text = write_report(tmp_path, NAME, o).read_text()
    assert "There is no tuned model to compare with." in text
    assert 'class="viewer"' not in text and 'data-figure="run"' not in text
    assert bundled("3dmol") not in text
    assert embedded(text, 'data-figure="pairs"')["layout"]["yaxis"]["title"]["text"].startswith(
        BASE
    )
    one = replace(o, records={TUNED: o.records[BASE]}, scores={TUNED: o.scores[BASE]})
    assert 'data-figure="pairs"' not in write_report(tmp_path, NAME, one).read_text()


# ---- figures -----------------------------------------------------------------------------------


def traces(figure):
    """By panel's title, the traces of its axes."""
    titles = [each.text for each in figure.layout.annotations]
    found = {title: [] for title in titles}
    for trace in figure.data:
        found[titles[int((trace.xaxis or "x")[1:] or 1) - 1]].append(trace)
    return found


def test_a_run_of_one_epoch_shows_the_base_and_every_step(tmp_path):
    figure, averaged = curves.history_figure(history(tmp_path, epochs=1, each=8))
    panels = traces(figure)
    assert not averaged
    points, line, validated = panels["mean ΔQ (amu<sup>½</sup> Å)"]
    np.testing.assert_allclose(points.x, np.arange(1, 8, 2) / 8)
    assert [step for (step,) in points.customdata] == [1, 3, 5, 7]
    np.testing.assert_allclose(list(zip(validated.x, validated.y, strict=True)), [[0, 4], [1, 3.5]])
    loss = panels["loss of the signal"][0]
    np.testing.assert_allclose(loss.y, 1 / np.arange(1, 9))
    assert len(panels["loss of the forces"][0].y) == 8
    (against,) = panels["validation: change of log(1 + ΔQ) against the base"]
    expected = np.mean(np.log1p(3.9 - 0.1 * np.arange(8))) - np.log1p(4.0)
    assert against.y[0] == pytest.approx(expected)
    assert "share converged" in panels and len(panels) == 6 + 1
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(shown) == sorted(set(shown)) and "training, X*" in shown


def test_an_interval_without_an_end_has_no_bar(tmp_path):
    run = History("lowest")
    run.open(tmp_path, 0)
    one = [replace(RECORD, delta_q=4.0)]
    run.set_base({"delta_q_mean": 4.0}, one)
    run.add_epoch(1, {"delta_q_mean": 3.0}, [replace(RECORD, delta_q=3.0)], Basin())
    assert run.epochs[0]["against_base"]["log_high"] == np.inf
    figure, _ = curves.history_figure(run)
    (against,) = traces(figure)["validation: change of log(1 + ΔQ) against the base"]
    assert list(against.error_y.array) == [0.0] and "+inf" in against.text[0]


def test_of_a_long_run_neighbours_are_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MOST", 10)
    figure, averaged = curves.history_figure(history(tmp_path, epochs=4, each=10))
    loss = traces(figure)["loss of the signal"][0]
    assert averaged and len(loss.y) == 10
    assert loss.y[0] == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4]))


def test_no_run_no_curves():
    assert curves.history_figure(History()) is None


def test_a_point_has_its_name_and_its_kind():
    found = records({BASE: [4.0, 1.0, 5.0], TUNED: [1.0, 3.0, 5.0]}, ["a", "b", "c"])
    figure, left_out = scatter.pairs_figure(found, (BASE, TUNED), Basin(), ringed=[1])
    points = {trace.name: trace for trace in figure.data}
    assert left_out == 0
    for kind, name, place in (
        ("gained (1)", "a", (4, 1)),
        ("lost (1)", "b", (1, 3)),
        ("wrong in both (1)", "c", (5, 5)),
    ):
        trace = points[kind]
        assert (trace.text, (trace.x[0], trace.y[0])) == ((name,), place)
    assert tuple(points["shown in 3D"].x) == (1.0,)


def test_of_many_structures_the_most_changed_are_drawn_and_some_of_the_others(monkeypatch):
    monkeypatch.setattr(scatter, "MOST", 6)
    names = [str(row) for row in range(20)]
    found = records({BASE: [4.0] * 20, TUNED: [4.0 + 0.1 * row for row in range(20)]}, names)
    figure, left_out = scatter.pairs_figure(found, (BASE, TUNED), Basin())
    named = {name for trace in figure.data for name in trace.text or ()}
    assert left_out == 14 and named == {"19", "18", "17", "16", "10", "4"}


# ---- what goes wrong ---------------------------------------------------------------------------


def test_a_page_that_fails_loses_no_results(tmp_path, monkeypatch, caplog, capsys):
    def full(folder, name, found):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting, "write_report", full)
    o = outcome(tmp_path)
    reporting.report("test", tmp_path, "gdeq", Basin(), o.records, lambda rows: [], o.history)
    assert json.loads((tmp_path / "test.json").read_text())["comparison"]["structures"] == 8
    assert "the page could not be written: OSError: [Errno 28] No space left" in caplog.text
    assert "report:" not in capsys.readouterr().out


def test_the_last_line_names_the_page(tmp_path, capsys):
    o = outcome(tmp_path)
    shown = lambda rows: [each for each in o.overlays if each.label.row in rows]  # noqa: E731
    reporting.report("test", tmp_path, "gdeq", Basin(), o.records, shown, o.history)
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    text = (tmp_path / "report.html").read_text()
    assert len(embedded(text, 'id="structures"')) == len(o.overlays)


def test_a_page_appears_whole_or_not_at_all(tmp_path):
    page = write_report(tmp_path, NAME, outcome(tmp_path))
    before = page.read_text()
    with pytest.raises(Exception, match="verdict"):
        write_page(tmp_path, HERE, "base.html", title="no verdict is given")
    assert page.read_text() == before
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]
