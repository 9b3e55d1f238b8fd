"""Checkpoints of fairchem 1 run nothing when they are opened, unless they are trusted."""

import gc
import logging
from pathlib import Path

import pytest
import torch
from fairchem.core.common import distutils

from fairchem_gdeq.fairchem1.base import read_checkpoint
from fairchem_gdeq.testing.fairchem1 import small1
from fairchem_gdeq.training.checkpoint_files import UntrustedFile
from fairchem_gdeq.training.history import STATE
from tests.fairchem1.test_run import KIND, fairchem, inputs, trained  # noqa: F401
from tests.payloads import Payload

ROOT = Path(__file__).parents[2]


def changed(good, path, **changes):
    stored = torch.load(good, weights_only=False)
    torch.save(stored | changes, path)
    return path


def refused(match, *arguments):
    """fairchem's command ends with this message; what it leaves open is closed."""
    with pytest.raises(UntrustedFile, match=match):
        fairchem(*arguments)
    distutils.cleanup()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.pt"
    small1.checkpoint(path, KIND)
    return path


def test_a_base_with_a_payload(inputs, good, tmp_path, caplog):  # noqa: F811
    """``--task.base``: refused before anything is trained; opened with ``--task.trust_files``."""
    mark = tmp_path / "ran"
    path = changed(good, tmp_path / "evil.pt", note=Payload(mark))
    arguments = (inputs, tmp_path / "run", "train", f"--task.base={path}", "--optim.max_epochs=0")
    refused(r"evil\.pt: refused, its pickle asks for os\.makedirs", *arguments)
    assert not mark.exists()
    gc.collect()
    with caplog.at_level(logging.WARNING):
        read_checkpoint(str(path), "", trust_files=True)
    assert mark.exists() and caplog.text.count("trust_files is true") == 1


@pytest.mark.parametrize("mode", ["validate", "train"])
def test_a_checkpoint_with_a_payload(inputs, trained, tmp_path, mode):  # noqa: F811
    """``--checkpoint``, to score and to go on from; fairchem would open the latter itself."""
    mark, folder = tmp_path / "ran", trained / "checkpoints" / "run"
    path = changed(folder / "checkpoint.pt", tmp_path / "checkpoint.pt", note=Payload(mark))
    (tmp_path / STATE).write_bytes((folder / STATE).read_bytes())
    arguments = (inputs, tmp_path / "run", mode, f"--checkpoint={path}")
    refused(r"checkpoint\.pt: refused.*os\.makedirs", *arguments)
    assert not mark.exists()
    fairchem(*arguments, "--task.trust_files=True")
    assert mark.exists()


def test_the_state_beside_a_checkpoint(inputs, trained, tmp_path):  # noqa: F811
    mark, folder = tmp_path / "ran", trained / "checkpoints" / "run"
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((folder / "checkpoint.pt").read_bytes())
    changed(folder / STATE, tmp_path / STATE, history=Payload(mark))
    arguments = (inputs, tmp_path / "run", "train", f"--checkpoint={path}")
    refused(r"gdeq_state\.pt: refused.*os\.makedirs", *arguments)
    assert not mark.exists()


def test_what_a_base_names(good, tmp_path):
    config = torch.load(good, weights_only=False)["config"]
    loss = [{"forces": {"fn": "os.getcwd", "coefficient": 1}}]
    path = changed(good, tmp_path / "loss.pt", config=config | {"loss_functions": loss})
    with pytest.raises(UntrustedFile, match=r"names os\.getcwd"):
        read_checkpoint(str(path), "")
    path = changed(good, tmp_path / "scales.pt", scale_dict="other.pt")
    with pytest.raises(UntrustedFile, match=r"scale_dict names another file, other\.pt"):
        read_checkpoint(str(path), "")


@pytest.mark.parametrize("name", ["equiformer_v2", "gemnet_oc"])
def test_shipped_bases_need_no_trust(name, caplog):
    found = read_checkpoint(str(ROOT / "data" / "slabs" / "base" / f"{name}.pt"), "")
    assert found["config"]["model"]["name"] == name and not caplog.records


def test_of_a_training_that_fairchem_has_written(trained, caplog):  # noqa: F811
    """With optimizer, schedule and average."""
    folder = trained / "checkpoints" / "run"
    for name in ("checkpoint.pt", "best_checkpoint.pt"):
        assert read_checkpoint(str(folder / name), "")["state_dict"]
    assert read_checkpoint(str(folder / "checkpoint.pt"), "")["optimizer"] and not caplog.records
