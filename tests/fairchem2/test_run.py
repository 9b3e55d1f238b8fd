"""The product as a user meets it: ``fairchem -c ... --mode train`` on a small real data set."""

import json
import subprocess

import numpy as np
import pytest
import torch

from tests.fairchem2.running import (
    assert_equal_up_to_rounding,
    command,
    comparable,
    fairchem,
    shown_in,
)


def test_train_ends_with_table_and_pictures(trained):
    run_dir, out, err = trained
    for row in ("unrelaxed X_0", "base", "tuned"):
        assert row in out
    assert "picture:" in out and "median" in out
    assert "val_dQ" in err and "conv=" in err  # the progress bar
    results = run_dir / "gdeq" / "results"
    for name in ("test_basins.png", "test_structures.png", "epochs.png", "test.json"):
        assert (results / name).stat().st_size > 1000
    assert f"report: {results / 'report.html'}" in out.splitlines()[-2:]
    assert shown_in(results) == [0, 1, 2]
    stored = comparable(run_dir / "gdeq")
    assert len(stored["records"]["tuned"]) == 3
    assert len(stored["history"]["epochs"]) == 2
    assert stored["best_epoch"] == stored["history"]["epochs"][-1]
    assert "tuned against base, " in out and stored["comparison"]["structures"] == 3
    assert stored["history"]["base"]["structures"] == 3
    for step in stored["history"]["steps"]:
        assert step["train/forces_loss"] > 0 and 0 < step["train/signal_share"] <= 1


def test_a_run_that_spoils_its_model_ends_with_the_base(inputs, tmp_path):
    options = ["--mode", "train", "lr=10.0", "keep=better", "epochs=1"]
    code, out, err = fairchem(inputs, tmp_path, *options)
    assert code == 0, err[-3000:]
    assert "reported: the base, since no epoch was better on validation" in out
    assert "3 validation structures: with fewer than 6" in err
    stored = comparable(tmp_path / "gdeq")
    assert stored["best_epoch"] is None
    assert_equal_up_to_rounding(stored["scores"]["tuned"], stored["scores"]["base"])
    best = tmp_path / "gdeq" / "results" / "best" / "inference_ckpt.pt"
    kept, base = (
        torch.load(path, weights_only=False).model_state_dict for path in (best, inputs / "esen.pt")
    )
    assert kept.keys() == base.keys()
    assert all(torch.equal(kept[key], base[key]) for key in base)


def test_tensorboard_has_the_run(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "gdeq" / "logs" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert "val/delta_q_mean" in tags and "train/loss" in tags
    assert len(events.Tensors("train/loss")) > 2


def test_missing_base_is_one_clear_message(inputs, tmp_path):
    code, _, err = fairchem(inputs, tmp_path, "base=nowhere/base.pt")
    assert code != 0
    assert "nowhere/base.pt" in err and "base=" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["forces.src=null"],
            "forces.updates=1, forces.alone=0.0, and there are no forces to train",
        ),
        (["forces.src=nowhere"], "frames nowhere: no such file or folder"),
        (["forces.val=none"], "frames none: no such file or folder"),
        (["forces.val=nowhere"], "do without them: forces.val=null"),
        (["forces.src=${data}/train_frames", "forces.val=${forces.src}"], "are held out"),
    ],
)
def test_frames_that_cannot_be_meant_stop_the_run_before_it_begins(inputs, tmp_path, options, said):
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train", *options)
    assert code != 0 and said in err and "step/s" not in err
    assert not list(tmp_path.glob("gdeq/checkpoints/*"))


FORCES = {
    "bptt": (["forces.src=none", "forces.val=null"], [False] * 4),
    "truncated_bptt": (["forces.src=base", "forces.updates=0"], [True] * 4),
    "implicit": (["forces.alone=0.5"], [True] * 4),
}


@pytest.mark.parametrize(
    "config",
    [name if name == "implicit" else pytest.param(name, marks=pytest.mark.slow) for name in FORCES],
)
def test_other_signals_run_from_their_configs(inputs, tmp_path, config):
    """With no forces beside them, with the base's, and with frames that come first."""
    options, known = FORCES[config]
    arguments = ("--mode", "train", "epochs=1", *options)
    code, out, err = fairchem(inputs, tmp_path, *arguments, config=config)
    assert code == 0, err[-3000:]
    stored = json.loads((tmp_path / config / "results" / "test.json").read_text())
    assert stored["signal"] == config and "tuned" in out
    steps = stored["history"]["steps"]
    assert ["train/forces_loss" in step for step in steps] == known[: len(steps)]
    measured = ["force_mae" in stored["scores"][row] for row in ("unrelaxed X_0", "base", "tuned")]
    assert measured == ([False] * 3 if config == "bptt" else [False, True, True])
    assert ("force MAE" in out) == (config != "bptt")
    signal = ["train/delta_q_guided" in step for step in steps]
    silent = len(steps) // 2 if config == "implicit" else 0
    assert signal == [False] * silent + [True] * (len(steps) - silent)


@pytest.mark.slow  # needs a C++ compiler
def test_a_compiled_run_is_the_same_run(inputs, tmp_path):
    options = ("--mode", "train", "epochs=1", "forces.src=none", "forces.val=null")
    runs = []
    for compiled in ("false", "true"):
        typed = command(inputs, tmp_path / compiled, *options, f"compile={compiled}", base="adapt")
        done = subprocess.run(typed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(comparable(tmp_path / compiled / "gdeq"))
    plain, compiled = runs
    for one, other in zip(plain["history"]["steps"], compiled["history"]["steps"], strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-3)
        assert other["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-2)
    for name in ("base", "tuned"):
        found = [[r["delta_q"] for r in run["records"][name]] for run in runs]
        np.testing.assert_allclose(*found, rtol=2e-2)
