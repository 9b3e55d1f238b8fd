"""What a run leaves: scored, predicted with, submitted, and opened in plain fairchem."""

import json
import os
import re
import shutil
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from fairchem_gdeq.api import evaluate, load_potential
from fairchem_gdeq.explore.paths import Settings
from fairchem_gdeq.explore.paths import opened as explored
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.same_run import KEPT
from tests.device.checks import assert_same
from tests.fairchem2.running import (
    assert_equal_up_to_rounding,
    comparable,
    fairchem,
)


def test_validate_both_spellings(inputs, trained):
    """The base is not relaxed again."""
    run_dir, _, _ = trained
    before = comparable(run_dir / "gdeq")["scores"]
    for mode in (["--mode", "validate"], ["mode=validate"]):
        code, out, err = fairchem(inputs, run_dir, *mode)
        assert code == 0, err[-3000:]
        assert "tuned" in out and "unrelaxed" in out
        assert re.search(r"structures are as an earlier run has relaxed them \(.*base_relaxed", err)
        again = run_dir / "gdeq" / "results" / "validate" / "test.json"
        assert_equal_up_to_rounding(json.loads(again.read_text())["scores"], before)
        again.unlink()


def test_another_run_with_the_same_base_ends_like_the_first(inputs, trained):
    """To the digit, though the base is not relaxed again."""
    run_dir = trained[0]
    kept = {f: f.stat().st_mtime_ns for f in (run_dir / "base_relaxed").iterdir()}
    assert sorted(f.name.split(".")[0] for f in kept) == ["test", "val"]
    code, _, err = fairchem(inputs, run_dir, "--mode", "train", "job.timestamp_id=again")
    assert code == 0, err[-3000:]
    assert kept == {f: f.stat().st_mtime_ns for f in (run_dir / "base_relaxed").iterdir()}
    assert_same(comparable(run_dir / "again"), comparable(run_dir / "gdeq"), rtol=0, atol=0)


def test_a_learnt_step_is_scored_with(inputs, trained, tmp_path):
    """With a step of zero and no solver steps after it, nothing moves."""
    shutil.copytree(trained[0] / "gdeq" / "results" / "best", tmp_path / "best")
    state = torch.load(tmp_path / "best" / "gdeq_state.pt", weights_only=True)
    state["alpha"] = torch.zeros(())
    torch.save(state, tmp_path / "best" / "gdeq_state.pt")
    options = [f"checkpoint={tmp_path / 'best' / 'inference_ckpt.pt'}", "relaxer.max_steps=0"]
    code, _, err = fairchem(inputs, tmp_path, "--mode", "validate", *options)
    assert code == 0, err[-3000:]
    stored = json.loads((tmp_path / "gdeq" / "results" / "validate" / "test.json").read_text())
    unrelaxed, tuned, base = (stored["records"][n] for n in ("unrelaxed X_0", "tuned", "base"))
    for start, end, other in zip(unrelaxed, tuned, base, strict=True):
        assert end["delta_q"] == pytest.approx(start["delta_q"], rel=1e-5)
        assert abs(other["delta_q"] - start["delta_q"]) > 1e-4


def test_a_run_in_python_relaxes_as_it_was_scored(inputs, trained):
    folder = trained[0] / "gdeq"
    potential = load_potential(folder, device="cpu")
    with connect(inputs / "test" / "data.aselmdb", type="aselmdb") as database:
        rows = [(row.toatoms(), row.data["pos_relaxed"]) for row in database.select()]
    starts = [atoms for atoms, _ in rows]
    targets = [Atoms(atoms, positions=there) for atoms, there in rows]
    found = evaluate({"tuned": potential}, starts, targets, show=False).records["tuned"]
    stored = json.loads((folder / "results" / "test.json").read_text())["records"]["tuned"]
    of_run = {record["row"]: record["delta_q"] for record in stored}
    assert {r.row: r.delta_q for r in found} == pytest.approx(of_run, rel=1e-3)


def test_a_run_in_python_has_its_momentum_and_learnt_step(trained, tmp_path):
    run = tmp_path / "gdeq"
    shutil.copytree(trained[0] / "gdeq" / "results" / "best", run / "results" / "best")
    settings = json.loads((trained[0] / "gdeq" / "checkpoints" / KEPT).read_text())
    settings["runner.train_eval_unit.is2rs.descent.momentum"] = 0.3
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / KEPT).write_text(json.dumps(settings))
    state = torch.load(run / "results" / "best" / "gdeq_state.pt", weights_only=True)
    state["alpha"] = torch.tensor(0.07)
    torch.save(state, run / "results" / "best" / "gdeq_state.pt")
    potential = load_potential(run)
    assert potential.task.descent.momentum == 0.3
    assert potential.task.alpha == pytest.approx(0.07)
    assert explored(Settings(str(run), alpha=0.02)).task.descent.momentum == 0.3


def test_a_folder_that_is_no_run_is_refused(trained, tmp_path):
    kept = f"checkpoints/{KEPT}"
    with pytest.raises(FileNotFoundError, match=f"no {kept} in it: expected the folder"):
        load_potential(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained[0] / "gdeq" / kept, tmp_path / kept)
    with pytest.raises(FileNotFoundError, match=r"no results/best/inference_ckpt\.pt in it"):
        load_potential(tmp_path)


@pytest.mark.slow
def test_a_run_in_which_structures_diverge_ends_with_advice(inputs, tmp_path):
    """With that rate the first step makes a potential of which nothing is finite or small."""
    options = ["lr=1e6", "epochs=40", "forces.src=none", "forces.max_atoms=null", "forces.val=null"]
    options.append("keep=better")
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train", *options)
    assert code != 0
    last = err.strip().splitlines()[-1].removeprefix("[rank0]: ")
    assert last.startswith("fairchem: ") and "structures diverged (" in last and "Lower lr" in last
    run = tmp_path / "gdeq"
    assert not (run / "results" / "test.json").exists()
    best = torch.load(run / "results" / "best" / "gdeq_state.pt", weights_only=True)
    assert best["history"]["epochs"] == [], "the base is what is kept"


@pytest.mark.slow
def test_a_checkpoint_is_scored_with_its_own_normalizer(inputs, tmp_path):
    """Its forces are twice those that the base's normalizer would make of its outputs."""
    checkpoint = torch.load(inputs / "esen.pt", weights_only=False)
    (forces,) = [task for task in checkpoint.tasks_config if task["property"] == "forces"]
    forces["normalizer"]["rmsd"] = 2.0
    torch.save(checkpoint, tmp_path / "twice.pt")
    shutil.copytree(inputs, tmp_path / "inputs")
    shutil.copy(tmp_path / "twice.pt", tmp_path / "inputs" / "twice.pt")
    found = {}
    for base, other in (("esen", tmp_path / "twice.pt"), ("twice", inputs / "esen.pt")):
        run = tmp_path / base
        options = ("--mode", "validate", f"checkpoint={other}")
        code, _, err = fairchem(tmp_path / "inputs", run, *options, base=base)
        assert code == 0, err[-3000:]
        stored = json.loads((run / "gdeq/results/validate/test.json").read_text())
        found[base] = stored["scores"]["base"]
        found[base, "as checkpoint"] = stored["scores"]["tuned"]
    assert found["esen", "as checkpoint"] == pytest.approx(found["twice"], rel=1e-4)
    assert found["twice", "as checkpoint"] == pytest.approx(found["esen"], rel=1e-4)
    assert found["esen"]["delta_q_mean"] != pytest.approx(found["twice"]["delta_q_mean"], rel=0.1)


def test_a_checkpoint_of_another_architecture_is_named(inputs, trained, tmp_path):
    options = (f"checkpoint={inputs / 'adapt.pt'}", "job.scheduler.ranks_per_node=1")
    code, _, err = fairchem(inputs, tmp_path, "--mode", "validate", *options)
    assert code == 0, err[-3000:]
    assert "is a ADAPTBackbone of" in err and "the table compares two architectures" in err


@pytest.mark.slow
def test_a_checkpoint_of_another_alpha_is_named(inputs, trained, tmp_path):
    """One table of two steps: the tuned model keeps that which it was trained with."""
    best = trained[0] / "gdeq" / "results" / "best" / "inference_ckpt.pt"
    for mode in ("validate", "predict"):
        code, _, err = fairchem(
            inputs, tmp_path, "--mode", mode, f"checkpoint={best}", "alpha=0.02"
        )
        assert code == 0, err[-3000:]
        assert "was trained with alpha=0.05 and relaxes with it" in err and "alpha=0.02: the" in err


def test_structures_larger_than_a_batch_are_not_left_out_in_silence(inputs, trained):
    code, _, err = fairchem(inputs, trained[0], "--mode", "validate", "eval_max_atoms=7")
    assert code != 0
    assert "split val: 1 of 3 structures have more atoms than a batch may (7): up to 8" in err
    assert "Raise eval_max_atoms" in err


def test_predict_writes_ase_files_and_npz(inputs, trained):
    run_dir, _, _ = trained
    code, out, err = fairchem(inputs, run_dir, "--mode=predict", "split=val")
    assert code == 0, err[-3000:]
    folder = run_dir / "gdeq" / "results" / "predictions"
    images = ase.io.read(folder / "val.extxyz", ":")
    stored = np.load(folder / "val.npz")
    assert [a.info["sid"] for a in images] == stored["ids"].tolist() == ["row0", "row1", "row2"]
    for atoms, positions in zip(images, np.split(stored["pos"], stored["chunk_idx"]), strict=True):
        np.testing.assert_allclose(atoms.positions, positions, atol=1e-6)


def test_validate_with_ase_rows_and_reference_forces(inputs, trained):
    run_dir, _, _ = trained
    folder = run_dir / "gdeq" / "results" / "validate"
    calculator = "reference={_target_: ase.calculators.lj.LennardJones, sigma: 2.0, rc: 4.0}"
    options = ["--mode", "validate", "split=val", "baselines=[ase_fire,ase_lbfgs]", calculator]
    code, out, err = fairchem(inputs, run_dir, *options)
    assert code == 0, err[-3000:]
    scores = json.loads((folder / "val.json").read_text())["scores"]
    rows = ["unrelaxed X_0", "base", "tuned", "ASE FIRE", "ASE LBFGS"]
    assert list(scores) == rows and "AFbT" in out and "0.1 eV" in out
    assert all({"reference_energy", "reference_within"} <= set(row) for row in scores.values())
    assert all(0 <= row["fbt"] <= 1 and 0 <= row["afbt"] <= 1 for row in scores.values())
    assert scores["ASE FIRE"]["evaluations"] > 1
    shared = {"positions_mse", "average_distance_within_threshold", "delta_q_mean"}
    assert all(shared <= set(row) for row in scores.values())


def test_predicted_structures_come_back_with_forces(inputs, trained, tmp_path):
    """predict, single points by somebody else, validate; on a held-out split of another name."""
    run_dir, _, _ = trained
    results = run_dir / "gdeq" / "results"
    shutil.copytree(inputs / "test", inputs / "ood_ads")
    code, _, err = fairchem(inputs, run_dir, "--mode", "predict", "test=ood_ads")
    assert code == 0, err[-3000:]
    assert (results / "predictions" / "ood_ads.npz").is_file()
    images = ase.io.read(results / "predictions" / "ood_ads.extxyz", ":")
    for atoms, size in zip(images, (0.0, 0.01, 0.3), strict=True):
        atoms.calc = SinglePointCalculator(atoms, forces=np.full((len(atoms), 3), size))
    ase.io.write(tmp_path / "dft.extxyz", images)
    options = ["--mode", "validate", "test=ood_ads", f"reference={tmp_path / 'dft.extxyz'}"]
    code, out, err = fairchem(inputs, run_dir, *options)
    assert code == 0, err[-3000:]
    scores = json.loads((results / "validate" / "ood_ads.json").read_text())["scores"]
    pages = [p.name for p in (results / "validate").glob("report*")]
    assert "report_ood_ads.html" in pages  # a page of each split
    assert "file dft.extxyz" in out and "fbt" not in scores["base"]
    row, tuned = scores["file dft.extxyz"], scores["tuned"]
    assert row["fbt"] == pytest.approx(2 / 3)
    for key in ("delta_q_mean", "positions_mae", "average_distance_within_threshold"):
        assert row[key] == pytest.approx(tuned[key], abs=1e-4)


@pytest.mark.slow
def test_legacy_test_splits_become_a_submission(inputs, tmp_path):
    """OC22's two splits as LMDBs without targets; the names of the rows are those of the file."""
    wanted = {"id": [100, 101, 102], "ood": [100, 101]}
    legacy = "test_loader.dataset.dataset_configs.is2rs.format=is2rs_lmdb"
    for split, sids in wanted.items():
        (inputs / split).mkdir()
        rows = [pyg.fields(pyg.slab(i), sid, oc22=True) for i, sid in enumerate(sids)]
        for stored in rows:
            del stored["pos_relaxed"]
        pyg.write(inputs / split / "data.0001.lmdb", [pyg.pyg1(stored) for stored in rows])
        options = [f"test={split}", legacy, "test_target_key=null"]
        predict = ("--mode", "predict", "checkpoint=base")
        code, _, err = fairchem(inputs, tmp_path, *predict, *options)
        assert code == 0, err[-3000:]
    code, _, err = fairchem(inputs, tmp_path, "--mode", "validate", *options)
    assert code != 0 and "test_target_key=null: expected" in err
    folder = tmp_path / "gdeq" / "results" / "predictions"
    script = [sys.executable, "-m", "fairchem.core.scripts.make_submission_file"]
    files = [f"--{split}={folder / split}.npz" for split in wanted]
    output = ["--dataset=OC22", f"--out-path={tmp_path / 'evalai'}"]
    subprocess.run([*script, *files, *output], check=True, capture_output=True)
    stored = np.load(tmp_path / "evalai.npz")
    for split, sids in wanted.items():
        assert stored[f"{split}_ids"].tolist() == [str(sid) for sid in sids]
        ends = np.split(stored[f"{split}_pos"], stored[f"{split}_chunk_idx"])
        for i, end in enumerate(ends):
            start = pyg.slab(i)
            held = start.constraints[0].index
            np.testing.assert_allclose(end[held], start.positions[held], atol=1e-5)
            assert end.shape == start.positions.shape


@pytest.mark.parametrize("base", ["esen", pytest.param("adapt", marks=pytest.mark.slow)])
def test_tuned_model_opens_in_plain_fairchem(inputs, trained, tmp_path, base):
    """In a fresh process that imports nothing of ours; forces as in training, to 1e-6."""
    run_dir, config = trained[0], "gdeq"
    if base == "adapt":
        run_dir = tmp_path
        code, _, err = fairchem(inputs, run_dir, "--mode", "train", "epochs=1", base="adapt")
        assert code == 0, err[-3000:]
    path = run_dir / config / "results" / "best" / "inference_ckpt.pt"
    atoms = small.silicon(1)[0]
    ase.io.write(tmp_path / "start.json", atoms)
    script = f"""
import ase.io, numpy as np, torch
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
atoms = ase.io.read({str(tmp_path / "start.json")!r})
atoms.calc = FAIRChemCalculator(load_predict_unit({str(path)!r}, device="cpu"), task_name="si")
np.save({str(tmp_path / "forces.npy")!r}, atoms.get_forces())
"""
    quick = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # no compiler needed
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=quick, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    from fairchem.core.units.mlip_unit.utils import load_inference_model

    from fairchem_gdeq.fairchem2.fields import HydraForceField, hydra_model

    model = hydra_model(load_inference_model(str(path), use_ema=True, return_checkpoint=False))
    tasks = small.tasks()
    tasks[0].normalizer.rmsd.fill_(1.0)
    data = small.batch([atoms], double=False)
    ours = HydraForceField.frozen(model.eval(), tasks, data)(data.pos).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "forces.npy"), ours, atol=1e-6)
    assert np.abs(ours).max() > 1e-3
