"""The product as a user meets it: ``fairchem -c ... --mode ...`` on a small real data set."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from fairchem_gdeq.fairchem2.runner import INTERRUPTED
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import small
from tests import commands
from tests.device.checks import assert_same

ROOT = Path(__file__).parents[2]
FAIRCHEM = str(Path(sys.executable).with_name("fairchem"))
CHEAP = [
    "epochs=2",
    "max_atoms=16",
    "eval_max_atoms=64",
    "job.scheduler.ranks_per_node=1",
    "horizon=3",
    "relaxer.horizon=3",
    "relaxer.max_steps=25",
    "relaxer.fmax=0.05",
    "runner.train_eval_unit.signal.max_steps=25",
    "runner.train_eval_unit.signal.adjoint.max_vjps=10",
    "runner.train_eval_unit.signal.adjoint.tol=0.5",
    "warm_start=true",
    "keep=last",
    "forces.max_atoms=16",
    "forces.updates=1",
    "forces.alone=0.0",
    "forces.max_atoms=16",
    "checkpoint_minutes=0",  # before every step
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for split, count, seed in (("train", 8, 0), ("val", 3, 1), ("test", 3, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    small.write_frames(folder / "train_frames", small.silicon(6, 3))
    small.write_frames(folder / "val_frames", small.silicon(3, 4))
    small.checkpoint(folder / "esen.pt")
    small.checkpoint(folder / "adapt.pt", "adapt")
    return folder


def command(inputs, run_dir, *extra, config="gdeq", base="esen"):
    return [
        FAIRCHEM,
        "-c",
        str(ROOT / "configs" / "si" / f"{config}.yml"),
        f"data={inputs}",
        f"base={inputs / f'{base}.pt'}",
        "train_structures=1.0",
        "test_structures=1.0",
        "paths.train=${data}/train",
        "paths.val=${data}/val",
        "paths.test=${data}/${test}",
        f"job.run_dir={run_dir}",
        *CHEAP,
        *extra,
    ]


def fairchem(*args, **kwargs):
    return commands.fairchem(*command(*args, **kwargs)[1:])


def ranks_of(count, *args):
    """The same in ``count`` ranks, by a real process that starts them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    typed = command(*args, f"job.scheduler.ranks_per_node={count}")
    done = subprocess.run(typed, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def comparable(folder, split="test"):
    """Everything of a result that does not depend on the clock or the machine's memory."""
    stored = json.loads((folder / "results" / f"{split}.json").read_text())
    for step in stored["history"]["steps"]:
        for key in ("train/seconds", "train/peak_memory_mb"):
            del step[key]
    return stored


# The last digit of a sum in single precision depends on where its terms lie in memory.
assert_equal_up_to_rounding = partial(assert_same, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    code, out, err = fairchem(inputs, run_dir, "--mode", "train")
    assert code == 0, err[-3000:]
    return run_dir, out, err


def test_train_ends_with_table_and_pictures(trained):
    run_dir, out, err = trained
    for row in ("unrelaxed X_0", "base", "tuned"):
        assert row in out
    assert "picture:" in out and "median" in out
    assert "val_dQ" in err and "conv=" in err  # the progress bar
    results = run_dir / "gdeq" / "results"
    for name in ("test_basins.png", "test_structures.png", "epochs.png", "test.json"):
        assert (results / name).stat().st_size > 1000
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


def test_two_ranks_score_every_structure_once(inputs, trained, tmp_path):
    """Of a split that fairchem packs into fewer batches than there are ranks."""
    code, out, err = ranks_of(2, inputs, tmp_path, "--mode", "train", "epochs=1")
    assert code == 0, err[-3000:]
    assert len(re.findall(r"│ *unrelaxed X_0 *│", out)) == 1
    assert "base on test, 1 of 2 processes" in err
    one, two = (
        json.loads((r / "gdeq/results/test.json").read_text()) for r in (trained[0], tmp_path)
    )
    assert len(two["records"]["tuned"]) == 3
    starts = [run["records"]["unrelaxed X_0"] for run in (one, two)]
    for mine, theirs in zip(*starts, strict=True):
        assert mine["sid"] == theirs["sid"]
        assert mine["delta_q"] == pytest.approx(theirs["delta_q"], rel=1e-5)


def test_rows_of_one_name_are_structures_of_their_own(tmp_path):
    """Of other sizes, too: trained by two ranks, scored, predicted, and gone on with by one."""
    sids = {
        "train": ["a", "a", "a", "b", "b", "c", "a", "a"],
        "val": ["v"] * 3,
        "test": ["t", "u", "t"],
    }
    for seed, (split, names) in enumerate(sids.items()):
        small.write_is2rs(tmp_path / split, small.silicon(len(names), seed), sids=names)
    small.write_frames(tmp_path / "train_frames", small.silicon(4, 3))
    small.write_frames(tmp_path / "val_frames", small.silicon(4, 4))
    small.checkpoint(tmp_path / "esen.pt")
    # Loose, so that a random potential's equilibria and adjoints count.
    signal = "runner.train_eval_unit.signal."
    loose = [signal + "fmax=0.5", signal + "adjoint.tol=0.5", signal + "adjoint.damping=0.0"]
    run, warm = tmp_path / "run", ["eval_max_atoms=9", "alpha_lr=1e-4", *loose]
    checkpoint = run / "gdeq" / "checkpoints" / "final"
    code, _, err = ranks_of(2, tmp_path, run, "--mode", "train", *warm)
    assert code == 0, err[-3000:]
    assert "7 rows have a name (sid) that others have too, 2 such names: a (5 rows), b (2" in err
    stored = comparable(run / "gdeq")
    assert [epoch["structures"] for epoch in stored["history"]["epochs"]] == [3, 3]
    for records in stored["records"].values():
        assert [(r["sid"], r["row"]) for r in records] == [("t", 0), ("t", 2), ("u", 1)]
        assert len({r["delta_q"] for r in records}) == 3
    files = sorted(path.name for path in checkpoint.glob("adjoints*"))
    assert files == ["adjoints.0of2.pt", "adjoints.1of2.pt"]
    parts = [torch.load(checkpoint / name, weights_only=True) for name in files]
    sizes = {row: 8 - row % 3 for row in range(8)}
    kept = {
        row: n
        for p in parts
        for row, n in zip(*(p[k].tolist() for k in ("rows", "sizes")), strict=True)
    }
    assert len(kept) > 2 and kept.items() <= sizes.items()

    code, out, err = fairchem(tmp_path, run, "--mode", "predict")
    assert code == 0, err[-3000:]
    images = ase.io.read(run / "gdeq/results/predictions/test.extxyz", ":")
    assert [(a.info["sid"], a.info["row"], len(a)) for a in images] == [
        ("t", 0, 8),
        ("t", 2, 6),
        ("u", 1, 7),
    ]
    assert "3 structures" in out and "test.npz is not written" in err
    assert not (run / "gdeq/results/predictions/test.npz").exists()

    steps = stored["history"]["steps"]
    code, _, err = fairchem(tmp_path, run, "--mode", "train", *warm, "epochs=3")
    assert code == 0, err[-3000:]
    again = comparable(run / "gdeq")["history"]["steps"]
    assert again[: len(steps)] == steps and len(again) > len(steps)
    assert all(0 < step["train/alpha"] < 0.06 for step in again)
    (path,) = checkpoint.glob("adjoints*")
    rows = torch.load(path, weights_only=True)["rows"].tolist()
    assert path.name == "adjoints.0of1.pt" and kept.keys() <= set(rows)


def test_tensorboard_has_the_run(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "gdeq" / "logs" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert "val/delta_q_mean" in tags and "train/loss" in tags
    assert len(events.Tensors("train/loss")) > 2


def test_validate_both_spellings(inputs, trained):
    run_dir, _, _ = trained
    before = comparable(run_dir / "gdeq")["scores"]
    for mode in (["--mode", "validate"], ["mode=validate"]):
        code, out, err = fairchem(inputs, run_dir, *mode)
        assert code == 0, err[-3000:]
        assert "tuned" in out and "unrelaxed" in out
        again = run_dir / "gdeq" / "results" / "validate" / "test.json"
        assert_equal_up_to_rounding(json.loads(again.read_text())["scores"], before)
        again.unlink()


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
    assert "file dft.extxyz" in out and "fbt" not in scores["base"]
    row, tuned = scores["file dft.extxyz"], scores["tuned"]
    assert row["fbt"] == pytest.approx(2 / 3)
    for key in ("delta_q_mean", "positions_mae", "average_distance_within_threshold"):
        assert row[key] == pytest.approx(tuned[key], abs=1e-4)


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
        code, _, err = fairchem(inputs, tmp_path, "--mode", "predict", *options)
        assert code == 0, err[-3000:]
    code, _, err = fairchem(inputs, tmp_path, "--mode", "validate", *options)
    assert code != 0 and "no targets" in err
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


@pytest.mark.parametrize("base", ["esen", "adapt"])
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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_ends_like_an_uninterrupted_one(inputs, trained, tmp_path, how):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(inputs, tmp_path, "--mode", "train"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / "gdeq" / "checkpoints"
    deadline = time.time() + 300
    while not (checkpoints / "step_4" / ".metadata").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    # `train && predict` must not go on.
    assert process.wait(60) == {signal.SIGINT: INTERRUPTED, signal.SIGKILL: -9}[how]
    assert not (tmp_path / "gdeq" / "results" / "test.json").exists()
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train")
    assert code == 0, err[-3000:]
    assert "starting from here" in err
    assert_equal_up_to_rounding(comparable(tmp_path / "gdeq"), comparable(trained[0] / "gdeq"))
    ends = [
        run / "gdeq" / "checkpoints" / "final" / "adjoints.0of1.pt"
        for run in (tmp_path, trained[0])
    ]
    resumed, straight = (torch.load(path, weights_only=True) for path in ends)
    for key, value in straight.items():
        assert torch.equal(resumed[key].sort(0).values, value.sort(0).values), key


def test_another_run_is_not_mixed_into_the_folder(inputs, trained):
    """Its learning rate, step and base would be, in one table."""
    results = trained[0] / "gdeq" / "results" / "test.json"
    before = results.read_bytes()
    other = ["lr=3e-3", "alpha=0.2", "job.seed=7"]
    code, _, err = fairchem(inputs, trained[0], "--mode", "train", *other, base="adapt")
    assert code != 0 and results.read_bytes() == before
    said = err[err.rindex("holds a run with other settings") :]
    for key, was, now in (
        ("optimizer_fn.lr", "0.0004", "0.003"),
        ("is2rs.alpha", "0.05", "0.2"),
        ("job.seed", "0", "7"),
        ("model.path", "esen.pt'", "adapt.pt'"),
    ):
        line = next(line for line in said.splitlines() if f"{key}:" in line)
        assert f"{was} there" in line and f"{now} now" in line
    assert "job.timestamp_id=NAME" in said
    code, _, err = fairchem(
        inputs, trained[0], "--mode", "train"
    )  # the same run may be started again
    assert code == 0, err[-3000:]


def test_a_checkpoint_from_before_the_history_file_is_gone_on_from(inputs, trained, tmp_path):
    """Version 0.1's first ones held all steps, and adjoints by name."""
    shutil.copytree(trained[0] / "gdeq", tmp_path / "gdeq")
    checkpoints = tmp_path / "gdeq" / "checkpoints"
    lines = (checkpoints / "history.jsonl").read_text().splitlines()
    (checkpoints / "history.jsonl").unlink()
    path = checkpoints / "final" / "gdeq_state.pt"
    state = torch.load(path, weights_only=True)
    assert set(state) == {"history", "alpha", "alpha_optimizer"}
    state["history"]["steps"] = [json.loads(line) for line in lines]
    state["adjoints"] = {"row0": torch.ones(8, 3)}
    torch.save(state, path)
    code, _, err = fairchem(inputs, tmp_path, "--mode", "train", "epochs=3")
    assert code == 0, err[-3000:]
    before, after = (comparable(run / "gdeq")["history"] for run in (trained[0], tmp_path))
    assert after["steps"][: len(lines)] == before["steps"] and len(after["epochs"]) == 3
    assert len(after["steps"]) == 3 * len(lines) / 2
    ended, longer = (steps[-1]["train/lr"] for steps in (before["steps"], after["steps"][:-1]))
    assert after["steps"][len(lines)]["train/lr"] > 2 * ended and longer > ended


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


@pytest.mark.parametrize("config", FORCES)
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
