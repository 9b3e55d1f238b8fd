"""RelaxNet as a user meets it: train, go on, validate and predict by ``fairchem -c``."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

pytest.importorskip("torchdiffeq")

import fairchem_gdeq as gdeq
from fairchem_gdeq.relaxnet.runner import RelaxNetRunner
from fairchem_gdeq.testing.fairchem2 import small
from tests import commands
from tests.device.checks import assert_same
from tests.fairchem2.relaxnet import paths

ROOT = Path(__file__).parents[3]
TIMES = ("train/seconds", "train/peak_memory_mb")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    known = paths.silicon_trajectories(6, frames=5)
    known["short"] = known["cell_0"][:2]
    paths.write_trajectories(folder / "train_frames", known)
    paths.write_trajectories(folder / "val_frames", paths.silicon_trajectories(2, 7))
    for split, seed in (("val", 1), ("test", 2)):
        small.write_is2rs(folder / split, small.silicon(3, seed))
    return folder


def fairchem(inputs, run_dir, *extra):
    return commands.fairchem(*typed(inputs, run_dir), "job.scheduler.ranks_per_node=1", *extra)


def typed(inputs, run_dir):
    return (
        "-c",
        ROOT / "configs" / "si" / "relaxnet.yml",
        f"data={inputs}",
        *(f"paths.{key}=${{data}}/{folder}" for key, folder in FOLDERS.items()),
        "frames=3",
        "epochs=2",
        "max_atoms=16",
        "eval_max_atoms=64",
        "network={channels: 8, radial_count: 4, heads: 2}",
        "keep=last",
        f"job.run_dir={run_dir}",
    )


FOLDERS = {"train": "train_frames", "val_frames": "val_frames", "val": "val", "test": "test"}


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    done = fairchem(inputs, run_dir, "--mode", "train")
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir / "relaxnet", done


def stored_of(run, split="test", folder="results"):
    return json.loads((run / folder / f"{split}.json").read_text())


def test_train_ends_with_the_table(trained):
    run, done = trained
    for text in ("unrelaxed X_0", "base", "tuned", "E last", "F all", "picture:"):
        assert text in done.stdout, text
    assert "trajectory short: 2 frames, expected at least 3 (frames=3)" in done.stderr
    stored = stored_of(run)
    assert len(stored["history"]["epochs"]) == 2 and len(stored["history"]["steps"]) == 6
    assert stored["scores"]["tuned"]["evaluations"] == 4 * 2 + 3
    for step in stored["history"]["steps"]:
        assert step["train/loss"] > 0 and step["train/direction_loss"] >= 0
    # The base is at rest: a random network has no velocity yet, and forces of a pseudotime's square.
    assert stored["scores"]["tuned"]["delta_q_mean"] != stored["scores"]["base"]["delta_q_mean"]
    assert stored["scores"]["tuned"]["energy_mae_all"] < 5  # references: about -40 eV a cell


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(inputs, trained, tmp_path):
    """From the checkpoint after the first epoch, to the same steps and the same model."""
    run, _ = trained
    done = fairchem(inputs, tmp_path, "--mode", "train", "epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    done = fairchem(inputs, tmp_path, "--mode", "train")
    assert done.returncode == 0, done.stderr[-3000:]
    whole, parts = (stored_of(each) for each in (run, tmp_path / "relaxnet"))
    assert len(parts["history"]["steps"]) == 6
    assert parts["history"]["steps"][0]["train/loss"] == pytest.approx(
        whole["history"]["steps"][0]["train/loss"], rel=1e-5
    )


@pytest.mark.slow
def test_two_ranks_train_and_score_every_structure_once(inputs, trained, tmp_path):
    done = commands.ranks(2, *typed(inputs, tmp_path), "--mode", "train")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (stored_of(each) for each in (trained[0], tmp_path / "relaxnet"))
    assert [r["sid"] for r in two["records"]["tuned"]] == ["row0", "row1", "row2"]
    assert len(two["history"]["steps"]) == 4  # 6 trajectories by twos in one rank, by fours in two
    assert_same(two["scores"]["base"], one["scores"]["base"], rtol=1e-4, atol=1e-5)
    assert np.isfinite(two["scores"]["tuned"]["delta_q_mean"])


def test_validate_and_predict(inputs, trained):
    run, _ = trained
    done = fairchem(inputs, run.parent, "--mode", "validate")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(
        stored_of(run, folder="results/validate")["scores"],
        stored_of(run)["scores"],
        rtol=1e-4,
        atol=1e-5,
    )
    done = fairchem(inputs, run.parent, "--mode", "predict")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = run / "results" / "predictions"
    ends, frames = (ase.io.read(folder / f"test{kind}.extxyz", ":") for kind in ("", "_paths"))
    assert [a.info["sid"] for a in ends] == ["row0", "row1", "row2"]
    assert [(a.info["row"], a.info["frame"]) for a in frames] == [
        (row, frame) for row in range(3) for frame in range(3)
    ]
    starts = small.silicon(3, 2)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        path = frames[3 * row : 3 * row + 3]
        np.testing.assert_allclose(path[0].positions, start.positions, atol=1e-5)
        np.testing.assert_allclose(path[-1].positions, end.positions, atol=1e-6)
        assert np.isfinite(path[1].get_potential_energy())
        assert np.abs(path[1].get_forces().sum(0)).max() < 1e-3
    assert np.load(folder / "test.npz")["ids"].tolist() == ["row0", "row1", "row2"]


def test_plain_fairchem_and_ours_open_the_model_as_a_potential(trained):
    from fairchem.core.units.mlip_unit.utils import load_inference_model

    run, _ = trained
    model = load_inference_model(str(run / "results" / "best" / "inference_ckpt.pt"), use_ema=True)
    model = (model[0] if isinstance(model, tuple) else model).eval()
    out = model(small.batch(small.silicon(2), double=False))
    assert out["energy"]["energy"].shape == (2,) and float(out["energy"]["energy"].max()) < -30
    assert bool(torch.isfinite(out["forces"]["forces"]).all())
    potential = gdeq.load_potential(str(run / "results/best/inference_ckpt.pt"), dataset="si")
    found = gdeq.relax(small.silicon(1), potential, max_steps=3)
    assert found.codes[0].value in ("max_steps", "converged")


@pytest.mark.parametrize("mode", ["diagnose", "audit"])
def test_modes_about_tuning_are_refused_in_a_sentence(mode):
    refused = rf"--mode {mode} asks .*, and RelaxNet is trained from random weights: choose train"
    with pytest.raises(ValueError, match=refused):
        getattr(RelaxNetRunner, mode)(object())


def test_jarvis_says_what_to_fetch(tmp_path):
    config = ROOT / "configs" / "jarvis" / "relaxnet.yml"
    done = commands.fairchem("-c", config, f"data={tmp_path}/none", "--mode", "train")
    assert done.returncode != 0
    assert "Fetch the figshare data set alignn_ff_db" in done.stderr
    assert "python -m fairchem_gdeq.data.jarvis" in done.stderr
