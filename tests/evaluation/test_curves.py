"""The picture of a run: what is drawn of short and of long ones."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End
from fairchem_gdeq.evaluation.curves import draw_delta_q, draw_forces, has_forces, running_mean
from fairchem_gdeq.evaluation.pictures import plot_epochs
from fairchem_gdeq.training.history import History


def run(folder, epochs, each, forces=True):
    """A history of so many epochs and steps, half of them of forces alone."""
    history = History("lowest")
    history.open(folder, 0)
    history.set_base({"delta_q_mean": 4.0}, [End(0, 4.0, False)])
    for step in range(epochs * each):
        log = {"train/step": step, "train/epoch": step / each}
        if forces:
            log["train/forces_loss"] = 1.0 / (1 + step)
        if step % 2:
            log |= {"train/delta_q_relaxed": 3.0, "train/delta_q_guided": float("nan")}
        history.add_step(log)
    for epoch in range(1, epochs + 1):
        scores = {"delta_q_mean": 4.0 - 0.1 * epoch}
        history.add_epoch(epoch, scores, [End(0, 3.0, False)], Basin())
    return history


@pytest.fixture
def axes():
    fig, axes = plt.subplots()
    yield axes
    plt.close(fig)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_one_epoch_shows_the_base_the_epoch_and_every_step(tmp_path, axes):
    history = run(tmp_path, 1, 30)
    draw_delta_q(axes, history)
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["validation"].get_xydata(), [[0, 4.0], [1, 3.9]])
    assert len(drawn["training, X*"].get_xdata()) == 15
    assert "training, X_K" not in drawn and "reported epoch" in drawn


def test_a_long_run_shows_the_mean_of_each_epoch(tmp_path, axes):
    history = run(tmp_path, 7, 4)
    draw_forces(axes, history)
    (drawn,) = axes.get_lines()
    np.testing.assert_allclose(drawn.get_xdata(), np.arange(7) + 0.5)
    first = np.mean([1.0, 1 / 2, 1 / 3, 1 / 4])
    assert drawn.get_ydata()[0] == pytest.approx(first)


def test_every_step_of_forces_is_a_point(tmp_path, axes):
    draw_forces(axes, run(tmp_path, 2, 10))
    smooth, points = axes.get_lines()
    np.testing.assert_allclose(points.get_ydata(), [1 / (1 + step) for step in range(20)])
    assert len(smooth.get_ydata()) == 20


@pytest.mark.parametrize("forces", [True, False])
def test_there_is_a_panel_of_forces_where_there_were_forces(tmp_path, forces, monkeypatch):
    history = run(tmp_path, 1, 6, forces)
    assert has_forces(history) == forces
    sizes = []
    monkeypatch.setattr(plt, "close", lambda fig: sizes.append(len(fig.axes)))
    assert plot_epochs(tmp_path / "epochs.png", history).stat().st_size > 1000
    assert sizes == [2 if forces else 1]
    monkeypatch.undo()
    plt.close("all")


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=200))
def test_a_running_mean_stays_within_and_is_the_mean_of_its_window(values):
    means = running_mean(values)
    reach = len(values) // 40
    assert len(means) == len(values)
    for place in {0, len(values) // 2, len(values) - 1}:
        window = values[max(place - reach, 0) : place + reach + 1]
        assert means[place] == pytest.approx(np.mean(window), abs=1e-9)
