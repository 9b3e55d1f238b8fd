"""The product as a user of fairchem 1 meets it: ``fairchem --mode ... --config-yml ...``."""

import copy
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from fairchem.core._cli import main
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, load_config, new_trainer_context
from fairchem.core.trainers import OCPTrainer

from fairchem_gdeq.evaluation.metric import METRICS
from fairchem_gdeq.fairchem1 import GDEQTrainer
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem1 import backbones, small1
from fairchem_gdeq.testing.frames import write_frames

ROOT = Path(__file__).parents[2]
KIND = "equiformer_v2"
CONSTANT = [
    "--optim.scheduler=Null",  # fairchem saves before the schedule's step, and resumes one late
    "--task.warm_start=True",
    "--task.keep=last",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    small1.write_data(folder, {"train": 4, "val": 2, "test": 2})
    small1.checkpoint(folder / f"{KIND}.pt", KIND)
    write_frames(folder / "train_frames", [pyg.slab(40 + i) for i in range(8)])
    write_frames(folder / "val_frames", [pyg.slab(60 + i) for i in range(3)])
    shared = ROOT / "configs" / "shared" / "finetune_fairchem1.yml"
    config = {"includes": [str(shared)], **small1.config(folder, KIND)}
    config["task"]["forces"] = {"src": str(folder / "train_frames"), "updates": 1}
    config["task"]["forces"]["val"] = str(folder / "val_frames")
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder


def arguments(inputs, run_dir, mode, *overrides):
    known = ["--mode", mode, "--cpu", "--run-dir", str(run_dir)]
    known += ["--config-yml", str(inputs / "config.yml"), *overrides]
    return flags.get_parser().parse_known_args(known)


def fairchem(*args):
    """fairchem's own ``main`` in this process."""
    gc.collect()  # LMDB files of a run before this one
    main(*arguments(*args))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    fairchem(inputs, run_dir, "train", *CONSTANT)
    return run_dir


def test_a_base_whose_forces_are_the_gradient_of_its_energy(inputs, tmp_path):
    """eSEN as released for OAM: trained on pairs and frames, its energy head as well."""
    base = tmp_path / "esen.pt"
    given = copy.deepcopy(backbones.BACKBONES["eSEN, conserving"])
    config = {"name": given.pop("model"), **given}
    small1.checkpoint(base, "esen", config=config)
    written = yaml.safe_load((inputs / "config.yml").read_text())
    written["task"]["base"], written["model"] = str(base), config
    (tmp_path / "config.yml").write_text(yaml.safe_dump(written))
    short = ["--optim.max_epochs=1", "--task.keep=last"]
    gc.collect()
    known = ["--mode", "train", "--cpu", "--run-dir", str(tmp_path)]
    known += ["--config-yml", str(tmp_path / "config.yml"), *short]
    main(*flags.get_parser().parse_known_args(known))
    assert list(results(tmp_path)["scores"]) == ["unrelaxed X_0", "base", "tuned"]
    before = torch.load(base, weights_only=True)["state_dict"]
    after = {name.removeprefix("module."): value for name, value in weights(tmp_path).items()}
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} >= {"backbone", "output_heads"}


def results(run_dir, name="test.json"):
    return json.loads((run_dir / "results" / "run" / name).read_text())


def weights(run_dir, name="checkpoint.pt"):
    return torch.load(run_dir / "checkpoints" / "run" / name, weights_only=True)["state_dict"]


def test_train_ends_with_table_pictures_and_checkpoints(trained):
    stored = results(trained)
    measured = [row.get("force_mae") for row in stored["scores"].values()]
    assert measured[0] is None and 0 < measured[1] != measured[2] > 0
    assert list(stored["scores"]) == ["unrelaxed X_0", "base", "tuned"]
    assert len(stored["history"]["steps"]) == 4 and len(stored["history"]["epochs"]) == 2
    assert stored["best_epoch"] == stored["history"]["epochs"][-1]
    for step in stored["history"]["steps"]:
        assert step["train/forces_loss"] > 0 and 0 < step["train/signal_share"] <= 1
    for name in ("test_basins.png", "test_structures.png", "epochs.png"):
        assert (trained / "results" / "run" / name).stat().st_size > 1000
    page = (trained / "results" / "run" / "report.html").read_text()
    for record in stored["records"]["tuned"]:  # both are among the structures in 3D
        assert f'"row": {record["row"]}, "name": "{record["sid"]}"' in page
    assert list((trained / "logs" / "tensorboard" / "run").iterdir())
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        checkpoint = torch.load(trained / "checkpoints" / "run" / name, weights_only=True)
        assert checkpoint["config"]["trainer"] == "ocp"
        assert float(checkpoint["normalizers"]["forces"]["rmsd"]) == 1.5


def test_a_run_that_spoils_its_model_ends_with_the_base(inputs, tmp_path, capsys, caplog):
    fairchem(inputs, tmp_path, "train", "--optim.lr_initial=10.0", "--optim.max_epochs=1")
    assert "reported: the base, since no epoch was better on validation" in capsys.readouterr().out
    assert "2 validation structures: with fewer than 6" in caplog.text
    stored = results(tmp_path)
    assert stored["best_epoch"] is None and stored["scores"]["tuned"] == stored["scores"]["base"]
    kept, base = weights(tmp_path, "best_checkpoint.pt"), torch.load(inputs / f"{KIND}.pt")
    base = base["ema"]["shadow_params"] if base.get("ema") else list(base["state_dict"].values())
    assert sum(torch.equal(a, b) for a, b in zip(kept.values(), base, strict=False)) == len(kept)


def test_a_folder_with_another_run_is_refused(inputs, trained, tmp_path):
    """And nothing in it is changed. More epochs go on."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "checkpoints" / "run" / "checkpoint.pt").read_bytes()
    others = (
        ("--optim.lr_initial=0.5", r"optim\.lr_initial: .* there, 0\.5 now"),
        ("--task.alpha=0.07", r"task\.alpha: .* there, 0\.07 now"),
        ("--task.signal=bptt", r"task\.signal: 'gdeq' there, 'bptt' now"),
    )
    for option, said in others:
        with pytest.raises(ValueError, match=rf"(?s){said}.*--task\.run_id=NAME"):
            fairchem(inputs, run, "train", *CONSTANT, option)
        distutils.cleanup()
    assert (run / "checkpoints" / "run" / "checkpoint.pt").read_bytes() == before


def test_a_run_whose_best_model_is_gone_says_so_at_its_start(inputs, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints" / "run" / "best_checkpoint.pt").unlink()
    with pytest.raises(
        ValueError, match=r"best_checkpoint\.pt: .* found no such file\. Put it back"
    ):
        fairchem(inputs, run, "train", *CONSTANT, "--optim.max_epochs=3")
    distutils.cleanup()


def test_a_run_at_its_end_without_its_checkpoint_is_not_begun_anew(inputs, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints" / "run" / "checkpoint.pt").unlink()
    best = run / "checkpoints" / "run" / "best_checkpoint.pt"
    before = best.read_bytes()
    said = r"test\.json is of a training that has ended.*--task\.run_id=NAME"
    with pytest.raises(ValueError, match=said):
        fairchem(inputs, run, "train", *CONSTANT)
    distutils.cleanup()
    assert best.read_bytes() == before


def test_the_base_is_predicted_with_only_where_it_is_asked_for(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"no best_checkpoint\.pt in .*--checkpoint base"):
        fairchem(inputs, tmp_path, "predict")
    distutils.cleanup()
    assert not list(tmp_path.rglob("test.npz"))
    fairchem(inputs, tmp_path, "predict", "--checkpoint", "base")
    assert list(tmp_path.rglob("predictions/test.npz"))


def test_the_other_modes_use_the_best_epoch(inputs, trained):
    """And what the base has relaxed before."""
    relaxed = {f: f.stat().st_mtime_ns for f in (trained / "base_relaxed").iterdir()}
    assert sorted(f.name.split(".")[0] for f in relaxed) == ["test", "val"]
    for mode in ("validate", "predict", "run-relaxations"):
        fairchem(inputs, trained, mode)
    assert relaxed == {f: f.stat().st_mtime_ns for f in (trained / "base_relaxed").iterdir()}
    assert results(trained, "validate/test.json")["scores"]["tuned"] == pytest.approx(
        results(trained)["scores"]["tuned"], rel=1e-4
    )
    folder = trained / "results" / "run"
    ours, fairchems = (
        np.load(folder / name) for name in ("predictions/test.npz", "relaxed_positions.npz")
    )
    for key in ("ids", "pos", "chunk_idx"):
        np.testing.assert_array_equal(ours[key], fairchems[key])
    assert len(ase.io.read(folder / "predictions" / "test.extxyz", ":")) == 2
    relaxed, tuned = (
        results(trained, name)["records"]["tuned"]
        for name in ("relaxations/test.json", "test.json")
    )
    for one, other in zip(relaxed, tuned, strict=True):
        assert one["sid"] == other["sid"] and one["evaluations"] == other["evaluations"]
        assert one["delta_q"] == pytest.approx(other["delta_q"], rel=1e-3)


def test_validate_shows_a_metric_from_outside_and_the_force_error(
    inputs, trained, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")  # else headings break
    try:
        fairchem(inputs, trained, "validate", "--task.metrics=[tests.worst.WORST]")
    finally:
        METRICS.pop("delta_q_worst", None)
    shown = capsys.readouterr().out
    assert "worst" in shown and "force MAE" in shown
    assert (trained / "results" / "run" / "validate" / "report_test.html").is_file()
    stored = results(trained, "validate/test.json")
    for title, row in stored["scores"].items():
        worst = max(record["delta_q"] for record in stored["records"][title])
        assert row["delta_q_worst"] == pytest.approx(worst)
        known = results(trained)["scores"][title].get("force_mae")
        assert row.get("force_mae") == (known and pytest.approx(known, rel=1e-5))


@pytest.mark.parametrize(
    ("options", "with_forces", "silent"),
    [
        (["--task.forces.src=none", "--task.forces.val=None"], 0, 0),
        (["--task.forces.src=base", "--task.forces.updates=0"], 2, 0),
        (["--task.forces.alone=0.5", "--task.forces.updates=0"], 2, 1),
    ],
)
def test_what_may_stand_beside_the_signal(inputs, tmp_path, options, with_forces, silent):
    """Nothing, the base's own forces, and frames that come first."""
    fairchem(inputs, tmp_path, "train", "--optim.max_epochs=1", *options)
    stored = results(tmp_path)
    steps = stored["history"]["steps"]
    assert len(steps) == 2
    assert ("force_mae" in stored["scores"]["tuned"]) == ("--task.forces.val=None" not in options)
    assert [step for step in steps if "train/forces_loss" in step] == steps[:with_forces]
    assert [step for step in steps if "train/delta_q_guided" in step] == steps[silent:]
    if silent:
        assert steps[0]["train/loss"] == steps[0]["train/forces_loss"] > 0


def test_interrupted_training_goes_on_and_ends_the_same(inputs, trained, tmp_path, monkeypatch):
    save, options = GDEQTrainer.save, [*CONSTANT, "--optim.checkpoint_every=1"]

    def interrupt(self, *args, **kwargs):
        path = save(self, *args, **kwargs)
        if self.step == 3:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(GDEQTrainer, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fairchem(inputs, tmp_path, "train", *options)
    distutils.cleanup()
    fairchem(inputs, tmp_path, "train", *options)
    straight, resumed = results(trained)["history"], results(tmp_path)["history"]
    assert [s["train/step"] for s in resumed["steps"]] == [1, 2, 3, 4]
    for one, other in zip(straight["epochs"], resumed["epochs"], strict=True):
        found, known = one.pop("against_base"), other.pop("against_base")
        assert found.pop("verdict") == known.pop("verdict")
        assert found == pytest.approx(known, rel=1e-3)
        for (row, far, gone), (its_row, its_far, its_gone) in zip(
            one.pop("ends"), other.pop("ends"), strict=True
        ):
            assert (row, gone) == (its_row, its_gone) and far == pytest.approx(its_far, rel=1e-3)
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in weights(trained).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=1e-5, atol=1e-7)
    # The same frames: two batches a step, four an epoch, so that the run was left in the middle of one.
    losses = [[step["train/forces_loss"] for step in run["steps"]] for run in (straight, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(set(losses[0])) == 4

    folders = [run / "checkpoints" / "run" for run in (trained, tmp_path)]
    state = torch.load(folders[0] / "gdeq_state.pt", weights_only=True)
    assert set(state) == {"history", "epochs"} and state["epochs"] == 2
    assert set(state["history"]) == {"epochs", "base", "base_ends"}
    lines = [(folder / "history.jsonl").read_text().splitlines() for folder in folders]
    assert len(lines[0]) == len(lines[1]) == 4
    one, other = (torch.load(folder / "adjoints.0of1.pt", weights_only=True) for folder in folders)
    assert sorted(one["rows"].tolist()) == sorted(other["rows"].tolist()) and len(one["rows"]) > 1
    assert sum(one["sizes"].tolist()) == len(one["adjoints"])


def test_a_checkpoint_from_before_the_history_file_is_gone_on_from(inputs, trained, tmp_path):
    """Version 0.1's first ones held all steps, and adjoints by name."""
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "run"
    steps = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    (folder / "history.jsonl").unlink()
    state = torch.load(folder / "gdeq_state.pt", weights_only=True)
    later = steps[-1] | {"train/step": 5}  # the file may be of later than the checkpoint
    state["history"]["steps"] = [*steps, later]
    state["adjoints"] = {"train0": torch.ones(13, 3)}
    torch.save(state, folder / "gdeq_state.pt")
    fairchem(inputs, tmp_path, "train", *CONSTANT, "--optim.max_epochs=3")
    found = results(tmp_path)["history"]
    assert found["steps"][:4] == steps
    assert [step["train/step"] for step in found["steps"]] == [1, 2, 3, 4, 5, 6]
    assert len(found["epochs"]) == 3
    # Shares of the run stay those of the run as it was begun.
    assert torch.load(folder / "gdeq_state.pt", weights_only=True)["epochs"] == 2


def test_two_ranks_take_the_steps_of_one(inputs, trained, tmp_path):
    """Each with half of a batch; every structure is scored once, and each rank keeps its adjoints."""
    known = ["--mode", "train", "--cpu", "--run-dir", str(tmp_path), "--num-gpus", "2"]
    known += ["--config-yml", str(inputs / "config.yml"), *CONSTANT, "--optim.batch_size=1"]
    command = [str(Path(sys.executable).with_name("fairchem")), *known]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (results(run)["history"] for run in (trained, tmp_path))
    # In the second epoch a rank meets structures whose adjoints the other rank knows.
    norms = [[step["train/grad_norm"] for step in run["steps"][:2]] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and len(two["steps"]) == 4
    # On a random potential L-BFGS turns other last digits, of structures relaxed in other company, into
    # 1e-3 within its eight steps; two epochs are further apart than that.
    scores = [run["epochs"][0]["delta_q_mean"] for run in (one, two)]
    assert scores[0] == pytest.approx(scores[1], rel=3e-3)
    assert one["epochs"][1]["delta_q_mean"] != pytest.approx(scores[0], rel=3e-2)
    assert len(results(tmp_path)["records"]["tuned"]) == 2
    names = [path.name for path in (tmp_path / "checkpoints" / "run").glob("adjoints*")]
    assert sorted(names) == ["adjoints.0of2.pt", "adjoints.1of2.pt"]


@pytest.fixture(scope="module")
def same_names(tmp_path_factory):
    """Inputs in which several rows have one name."""
    folder = tmp_path_factory.mktemp("same")
    sids = {"train": ["a", "a", "b", "a", "a"], "val": ["v", "v", "w"], "test": ["t", "t", "t"]}
    small1.write_data(folder, {split: len(names) for split, names in sids.items()}, sids)
    small1.checkpoint(folder / f"{KIND}.pt", KIND)
    shared = ROOT / "configs" / "shared" / "finetune_fairchem1.yml"
    config = {"includes": [str(shared)], **small1.config(folder, KIND)}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder


def test_rows_of_one_name_are_structures_of_their_own(same_names, tmp_path, caplog):
    """Trained on, scored, predicted and relaxed."""
    fairchem(same_names, tmp_path, "train", *CONSTANT)
    assert "4 rows have a name (sid) that others have too, 1 such names: a (4 rows)" in caplog.text
    stored = results(tmp_path)
    assert [epoch["structures"] for epoch in stored["history"]["epochs"]] == [3, 3]
    for records in stored["records"].values():
        assert [(r["sid"], r["row"]) for r in records] == [("t", 0), ("t", 1), ("t", 2)]
        assert len({r["delta_q"] for r in records}) == 3
    kept = torch.load(tmp_path / "checkpoints/run/adjoints.0of1.pt", weights_only=True)
    assert set(kept["rows"].tolist()) <= set(range(5)) and len(kept["rows"]) > 2
    fairchem(same_names, tmp_path, "run-relaxations")
    folder = tmp_path / "results" / "run"
    images = ase.io.read(folder / "relaxations" / "test.extxyz", ":")
    assert [(a.info["sid"], a.info["row"]) for a in images] == [("t", 0), ("t", 1), ("t", 2)]
    relaxed = results(tmp_path, "relaxations/test.json")["records"]["tuned"]
    for one, other in zip(relaxed, stored["records"]["tuned"], strict=True):
        assert one["delta_q"] == pytest.approx(other["delta_q"], rel=1e-3)
    assert "relaxed_positions.npz is not written" in caplog.text
    assert not list(folder.rglob("*.npz"))


def test_amp_is_computed_in_single_precision(inputs, trained, tmp_path, caplog):
    """``--amp``, and whatever autocast is on around it, gives the weights of the run without."""
    gc.collect()
    distutils.setup_env_local()
    with new_trainer_context(
        config=build_config(*arguments(inputs, tmp_path, "train", "--amp", *CONSTANT))
    ) as context:
        assert context.trainer.scaler is None and context.trainer.config["amp"] is False
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context.trainer.train()
    assert caplog.text.count("relaxations are computed in float32") == 1
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        found = weights(tmp_path, name)
        for key, value in weights(trained, name).items():
            assert torch.equal(found[key], value), key
    start = torch.load(inputs / f"{KIND}.pt", weights_only=True)["state_dict"]
    assert any(
        not torch.equal(value, start[key.removeprefix("module.")]) for key, value in found.items()
    )


def test_the_tuned_model_opens_in_plain_fairchem_1(trained, tmp_path):
    path = trained / "checkpoints" / "run" / "best_checkpoint.pt"
    atoms = pyg.slab(0)
    del atoms.info["pos_relaxed"]
    atoms.set_constraint()
    atoms.write(tmp_path / "slab.json")
    script = f"""
import sys
import ase.io
import numpy as np
sys.modules["fairchem_gdeq"] = None  # nothing of ours
from fairchem.core import OCPCalculator
atoms = ase.io.read({str(tmp_path / "slab.json")!r})
atoms.calc = OCPCalculator(checkpoint_path={str(path)!r}, seed=0)
np.save({str(tmp_path / "forces.npy")!r}, atoms.get_forces())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = small1.model(KIND)
    state = {
        name.removeprefix("module."): value for name, value in weights(trained, path.name).items()
    }
    model.load_state_dict(state)
    expected = 1.5 * small1.forces(model, atoms)  # the base's normalizer
    np.testing.assert_allclose(np.load(tmp_path / "forces.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_base_with_averaged_weights_gives_those(inputs, trained, tmp_path):
    small1.checkpoint(tmp_path / "average.pt", KIND, average=True)
    option = f"--task.base={tmp_path / 'average.pt'}"
    fairchem(inputs, tmp_path, "validate", option)
    found = results(tmp_path, "validate/test.json")["scores"]
    assert list(found) == ["unrelaxed X_0", "base"]
    assert found["base"] == pytest.approx(results(trained)["scores"]["base"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--task.base=none.pt", "--task.base_hint=Get it."],
            r"none\.pt: no such file.*Get it\.",
        ),
        (["--model.max_radius=5.0"], r"max_radius: 4\.0 in the checkpoint, 5\.0 in the config"),
        (["--task.horizn=3"], "task: unknown keys horizn"),
        (["--task.settings.horizon=3"], r"task\.settings: unknown keys horizon"),
        (["--task.signal=newton"], r"task: unknown training signal 'newton': choose one of"),
        (
            ["--task.forces.src=nowhere"],
            r"frames nowhere: no such file.*src=FOLDER, or.*--task\.forces\.src=none",
        ),
        (["--task.forces.val=nowhere"], r"frames nowhere: no such file.*--task\.forces\.val=None"),
        (["--task.forces.val=TRAIN"], r"frames .*train_frames: another data set of this run"),
        (
            ["--task.forces.src=None"],
            r"task\.forces\.updates=1, and there are no forces to train on",
        ),
        (
            ["--task.metrics=[tests.worst.NONE]"],
            r"metric 'tests\.worst\.NONE': nothing is there",
        ),
        (["--task.forces.alone=2"], r"task\.forces\.alone=2: expected a share of the run"),
        (["--checkpoint", "BASE"], r"not of a run of this trainer.*--task\.base=PATH"),
    ],
)
def test_what_is_wrong_is_said(inputs, tmp_path, options, expected):
    frames = str(inputs / "train_frames")
    options = [str(inputs / f"{KIND}.pt") if each == "BASE" else each for each in options]
    options = [each.replace("TRAIN", frames) for each in options]
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        fairchem(inputs, tmp_path, "train", *options)
    distutils.cleanup()


def test_fairchems_own_trainer_keeps_its_tasks(inputs, tmp_path):
    """Our tasks take the names of fairchem's, which must go on as they were."""
    from fairchem.core.common.registry import registry

    class Plain(OCPTrainer):
        def __init__(self):
            self.config = {"cmd": {"checkpoint_dir": str(tmp_path)}}
            self.test_loader = self.val_loader = self.relax_dataset = "data"
            self.called = []

        def load_checkpoint(self, checkpoint_path):
            self.called.append(checkpoint_path)

        def train(self, disable_eval_tqdm=False):
            self.called.append("train")

        def validate(self, split, disable_tqdm):
            self.called.append("validate")

        def predict(self, loader, results_file, disable_tqdm):
            self.called.append("predict")

        def run_relaxations(self):
            self.called.append("run-relaxations")

    for mode in ("train", "validate", "predict", "run-relaxations"):
        task, trainer = registry.get_task_class(mode)({"checkpoint": "a.pt"}), Plain()
        task.setup(trainer)
        task.run()
        assert trainer.called == ["a.pt", mode]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("oc22/gdeq_gemnet_oc_smoke", "gemnet_oc"),
        ("oc20/gdeq_equiformer_v2_smoke", "equiformer_v2"),
    ],
)
def test_smoke_configs_as_typed(inputs, tmp_path, config, kind):
    """The command of the config, on fewer and smaller systems and with a random base."""
    path = ROOT / "configs" / f"{config}.yml"
    small1.checkpoint(tmp_path / "base.pt", kind, config=load_config(path)[0]["model"])
    fairchem = [str(Path(sys.executable).with_name("fairchem")), "--mode", "train", "--cpu"]
    options = [
        "horizon=1",
        "relaxer.max_steps=2",
        "settings.max_steps=2",
        "settings.adjoint.max_vjps=2",
    ]
    sources = [f"--dataset.{split}.src={inputs / split}" for split in ("train", "val", "test")]
    done = subprocess.run(
        [
            *(*fairchem, "--config-yml", str(path), "--run-dir", str(tmp_path)),
            *(f"--task.{option}" for option in options),
            *(
                *(f"--dataset.{split}.first_n=None" for split in ("train", "val", "test")),
                "--task.forces.updates=1",
                f"--task.forces.src={inputs / 'train_frames'}",
                f"--task.forces.val={inputs / 'val_frames'}",
                *sources,
                f"--task.base={tmp_path / 'base.pt'}",
                "--optim.max_epochs=1",
            ),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tuned" in done.stdout
    stored = json.loads((tmp_path / "results" / f"{kind}_smoke" / "test.json").read_text())
    assert stored["scores"]["tuned"]["force_mae"] > 0
    assert (tmp_path / "checkpoints" / f"{kind}_smoke" / "best_checkpoint.pt").is_file()
