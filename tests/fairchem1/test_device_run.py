"""A run of fairchem 1's trainer on a device, in this process: its loop, checkpoints, averages, scores.

fairchem 1 has no switch for a device but ``--cpu``, so the trainer's own attribute is set.
"""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from fairchem.core._cli import main
from fairchem.core.common.flags import flags

from fairchem_gdeq.evaluation import report
from fairchem_gdeq.fairchem1 import GDEQTrainer
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem1 import small1
from fairchem_gdeq.testing.frames import write_frames
from tests.device.checks import CPU, assert_on
from tests.fairchem1.test_device import device  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
STEP = {"rel": 2e-3, "abs": 1e-4}  # single precision, through a relaxation
CLOCK = {"train/seconds", "train/peak_memory_mb"}


@pytest.fixture
def fairchem(tmp_path, monkeypatch):
    """``fairchem --mode ...`` on a device; returns the trainer that it made."""
    made = []
    init = GDEQTrainer.__init__

    def kept(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(GDEQTrainer, "__init__", kept)
    monkeypatch.setattr(report, "plot_all", lambda *args: [])

    def run(kind, where, folder, mode, *overrides):
        if not (tmp_path / f"{kind}.yml").exists():
            if not (tmp_path / "train").exists():
                small1.write_data(tmp_path, {"train": 4, "val": 1, "test": 2})
                write_frames(tmp_path / "frames", [pyg.slab(40 + i) for i in range(4)])
            small1.checkpoint(tmp_path / f"{kind}.pt", kind)
            shared = ROOT / "configs" / "shared" / "finetune_fairchem1.yml"
            config = {"includes": [str(shared)], **small1.config(tmp_path, kind)}
            config["task"]["forces"] = {"src": str(tmp_path / "frames")}
            (tmp_path / f"{kind}.yml").write_text(yaml.safe_dump(config))
        chosen = property(lambda self: where, lambda self, value: None)
        monkeypatch.setattr(GDEQTrainer, "device", chosen, raising=False)
        made.clear()
        gc.collect()  # LMDB files of a run before this one
        # fairchem saves before the schedule's step, and resumes one late: no schedule here.
        arguments = ["--mode", mode, "--cpu", "--optim.scheduler=Null", "--optim.ema_decay=0.9"]
        arguments += [
            "--run-dir",
            str(folder),
            "--config-yml",
            str(tmp_path / f"{kind}.yml"),
            *overrides,
        ]
        main(*flags.get_parser().parse_known_args(arguments))
        return made[-1]

    yield run
    if dist.is_initialized():  # where a run failed
        dist.destroy_process_group()


def result(folder):
    return json.loads((folder / "results" / "run" / "test.json").read_text())


@pytest.mark.parametrize("kind", small1.MODELS)
def test_training_resuming_and_scoring(device, fairchem, tmp_path, kind):  # noqa: F811
    """The same steps and scores as on the CPU, though the run was left after its first epoch."""
    fairchem(kind, CPU, tmp_path / "cpu", "train")
    fairchem(kind, device, tmp_path / "device", "train", "--optim.max_epochs=1")
    trainer = fairchem(kind, device, tmp_path / "device", "train")
    moments = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert_on(device, [*trainer.model.parameters(), *moments])

    expected, found = result(tmp_path / "cpu"), result(tmp_path / "device")
    steps = expected["history"]["steps"]
    assert len(found["history"]["steps"]) == len(steps) == 4
    for mine, other in zip(found["history"]["steps"], steps, strict=True):
        for key in other.keys() - CLOCK:
            assert mine[key] == pytest.approx(other[key], nan_ok=True, **STEP), key
        assert not other["train/skipped_update"] and other["train/forces_loss"] > 0
    for title, records in expected["records"].items():
        for mine, other in zip(found["records"][title], records, strict=True):
            assert mine["sid"] == other["sid"]
            assert mine["delta_q"] == pytest.approx(other["delta_q"], rel=1e-2)


def test_prediction(device, fairchem, tmp_path):  # noqa: F811
    files = []
    for where in (CPU, device):
        fairchem("gemnet_oc", where, tmp_path / where.type, "predict", "--checkpoint", "base")
        files.append(np.load(next((tmp_path / where.type).rglob("test.npz"))))
    assert files[0]["ids"].tolist() == files[1]["ids"].tolist() and len(files[0]["ids"]) == 2
    np.testing.assert_allclose(files[1]["pos"], files[0]["pos"], atol=1e-3)
    assert not torch.cuda.is_available() or device.type != "fake"
