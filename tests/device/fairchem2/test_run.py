"""A whole run of fairchem 2 on a device, in this process: the config, the runner and all that it makes.

As fairchem's launcher does it with one rank, but that ranks talk by gloo on every device: the pretended
one has no NCCL.
"""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import torch.distributed as dist
from fairchem.core._cli import get_hydra_config_from_yaml
from omegaconf import OmegaConf
from torchtnt.framework.callback import Callback

from fairchem_gdeq.evaluation import report
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.testing.fairchem2 import small
from tests.device.checks import CPU, assert_on, assert_same

ROOT = Path(__file__).parents[3]
CHEAP = [
    "epochs=2",  # the second one recalls adjoints
    "max_atoms=16",
    "eval_max_atoms=24",
    "train_structures=1.0",
    "test_structures=1.0",
    "warm_start=true",
    "horizon=2",
    "relaxer.horizon=2",
    "alpha_lr=1e-3",
    "lr=1e-3",
    "relaxer.max_steps=4",
    "runner.train_eval_unit.signal.max_steps=60",
    "runner.train_eval_unit.signal.fmax=0.5",
    "runner.train_eval_unit.signal.adjoint.max_vjps=10",
    "runner.train_eval_unit.signal.adjoint.tol=0.5",
    "runner.train_eval_unit.clip_grad_norm=1.0",
    "checkpoint_minutes=0",
    "paths.train=${data}/train",
    "paths.val=${data}/val",
    "paths.test=${data}/${test}",
    "forces.src=none",
    "forces.val=null",
]
STEP = {"rel": 1e-4, "abs": 1e-5}  # single precision, through a relaxation


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for split, count, seed in (("train", 4, 0), ("val", 1, 1), ("test", 2, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    small.checkpoint(folder / "esen.pt")
    return folder


class Interrupt(Callback):
    """Ends a training run after so many steps, as Ctrl-C would."""

    def __init__(self, after):
        self.after = after

    def on_train_step_end(self, state, unit):
        if unit.train_progress.num_steps_completed == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def runner_on(inputs, monkeypatch):
    """Makes the runner of a config as fairchem's launcher does, on a device; no pictures are drawn."""
    monkeypatch.setattr(report, "plot_all", lambda *args: [])

    def make(device, folder, *overrides):
        for module in list(sys.modules.values()):  # each has imported the function by its name
            if getattr(module, "get_device_for_local_rank", None) is not None:
                monkeypatch.setattr(module, "get_device_for_local_rank", lambda: str(device))
        where = [f"data={inputs}", f"base={inputs / 'esen.pt'}", f"job.run_dir={folder}"]
        config = get_hydra_config_from_yaml(
            str(ROOT / "configs/si/gdeq.yml"), [*where, *CHEAP, *overrides]
        )
        Path(config.job.metadata.log_dir).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, config.job.metadata.config_path)
        torch.manual_seed(0)
        runner = hydra.utils.instantiate(config.runner)
        runner.job_config = config.job
        runner.load_state(None)
        return runner

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield make
    dist.destroy_process_group()
    torch.use_deterministic_algorithms(False)


def result(folder, split="test"):
    return json.loads((folder / "gdeq" / "results" / f"{split}.json").read_text())


def assert_same_steps(found, expected):
    """The logs of the same optimizer steps."""
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        for key in other.keys() - {"train/seconds", "train/peak_memory_mb"}:
            assert mine[key] == pytest.approx(other[key], nan_ok=True, **STEP), key


def test_training_resuming_and_scoring(device, runner_on, tmp_path):
    """The same steps, weights, averages and scores as on the CPU, also after an interruption, and on a
    machine without the device where the checkpoint was written on it."""
    torch.use_deterministic_algorithms(True)  # as the config asks the launcher for
    whole = runner_on(CPU, tmp_path / "cpu")
    whole.run()
    expected = result(tmp_path / "cpu")
    steps = expected["history"]["steps"]
    assert len(steps) == 4 and not any(step["train/skipped_update"] for step in steps)
    assert any(step["train/equilibrium_used"] > 0 for step in steps), "no adjoint was solved"

    first = runner_on(device, tmp_path / "device")
    first.callbacks.append(Interrupt(3))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    unit = first.train_eval_unit
    moments = [state["exp_avg"] for state in unit.optimizer.state.values()]
    assert_on(
        device, [*unit.model.parameters(), *unit.ema_model.parameters(), *moments, unit.alpha]
    )

    shutil.copytree(tmp_path / "device", tmp_path / "moved")
    resumed = runner_on(device, tmp_path / "device")
    resumed.run()
    found = result(tmp_path / "device")
    assert_same_steps(found["history"]["steps"], steps)
    for title, records in expected["records"].items():
        for mine, other in zip(found["records"][title], records, strict=True):
            assert mine["sid"] == other["sid"]
            assert mine["delta_q"] == pytest.approx(other["delta_q"], rel=1e-3)
    pairs = zip(averages(resumed), averages(whole), strict=True)
    assert_same(*zip(*pairs, strict=True), rtol=1e-3, atol=1e-5)

    with without(device):
        moved = runner_on(CPU, tmp_path / "moved")
        moved.callbacks.append(Interrupt(4))
        with pytest.raises(KeyboardInterrupt):
            moved.run()
        assert_same_steps(moved.train_eval_unit.history.steps, steps)
        runner_on(
            CPU, tmp_path / "device", "mode=predict"
        ).run()  # with the best, which is the device's


@pytest.mark.slow
def test_going_on_from_before_the_first_update(runner_on, tmp_path, monkeypatch):
    """The first gradient is thrown away, so that a step has passed and the optimizer has no state yet."""
    update = GDEQTrainer._update

    def spoiled(unit, *args):
        if unit.train_progress.num_steps_completed == 0:
            next(p.grad for p in unit.model.parameters() if p.grad is not None).fill_(torch.nan)
        return update(unit, *args)

    monkeypatch.setattr(GDEQTrainer, "_update", spoiled)
    whole = runner_on(CPU, tmp_path / "whole")
    whole.run()
    skipped = [step["train/skipped_update"] for step in whole.train_eval_unit.history.steps]
    assert skipped == [1, 0, 0, 0]

    first = runner_on(CPU, tmp_path / "cut")
    first.callbacks.append(Interrupt(2))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    checkpoints = tmp_path / "cut" / "gdeq" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step_*")) == ["step_0", "step_1"]
    resumed = runner_on(CPU, tmp_path / "cut")
    resumed.run()
    assert_same(averages(resumed), averages(whole), rtol=0, atol=0)


def averages(runner):
    return [p.detach().cpu() for p in runner.train_eval_unit.ema_model.parameters()]


def without(device):
    """A machine on which the device is not there; a real one cannot be taken away."""
    if device.type != "fake":
        return nullcontext()
    from fairchem_gdeq.testing.device.fake import absent

    return absent()


def test_prediction(device, runner_on, tmp_path):
    """``Bulk``, its journal and the leaderboard's file."""
    files = []
    for where in (CPU, device):
        folder = tmp_path / where.type
        options = ("mode=predict", "checkpoint=base", "split=test", "eval_max_atoms=9")
        runner_on(where, folder, *options).run()
        files.append(np.load(folder / "gdeq" / "results" / "predictions" / "test.npz"))
    assert files[0]["ids"].tolist() == files[1]["ids"].tolist() == ["row0", "row1"]
    np.testing.assert_allclose(files[1]["pos"], files[0]["pos"], atol=1e-4)
