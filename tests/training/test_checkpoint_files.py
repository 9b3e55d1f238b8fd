"""Files are opened without running what they ask for, unless they are trusted."""

import logging
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fairchem_gdeq.training.checkpoint_files import (
    UntrustedFile,
    open_checkpoint,
    require_model_parts,
)
from tests.payloads import Payload, calling

LOSS = "fairchem.core.modules.loss.L2NormLoss"


def test_what_trainings_store_is_opened(tmp_path):
    config = OmegaConf.create({"a": [1, 2.5, True, None, "text"], "b": {"c": "${a}"}})
    stored = {
        "state_dict": OrderedDict(w=torch.arange(3.0), n=torch.tensor(2)),
        "config": config,
        "metric": np.float64(0.25),
        "count": np.int64(3),
        "dtype": torch.bfloat16,
        "groups": defaultdict(dict),
        "folder": Path("runs/base"),
        "ema": {"decay": 0.9, "shadow_params": [torch.nn.Parameter(torch.ones(2))]},
    }
    torch.save(stored, tmp_path / "checkpoint.pt")
    found = open_checkpoint(tmp_path / "checkpoint.pt")
    assert found.keys() == stored.keys()
    assert torch.equal(found["state_dict"]["w"], stored["state_dict"]["w"])
    assert found["config"] == config and found["config"].b.c[1] == 2.5
    for key in ("metric", "count", "dtype", "groups", "folder"):
        assert found[key] == stored[key] and type(found[key]) is type(stored[key])


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_payload_does_not_run(tmp_path, protocol):
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"state_dict": {}, "x": Payload(mark)}, path, pickle_protocol=protocol)
    with pytest.raises(UntrustedFile, match="trust_files=true") as refused:
        open_checkpoint(path)
    assert str(path) in str(refused.value) and "Nothing of it was run" in str(refused.value)
    assert protocol != 2 or "asks for os.makedirs" in str(refused.value)
    assert not mark.exists()


def test_a_trusted_file_is_opened_and_said_once(tmp_path, caplog):
    path, mark = tmp_path / "mine.pt", tmp_path / "ran"
    torch.save({"x": Payload(mark), "y": 3}, path)
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(path, trust=True)["y"] == 3
        open_checkpoint(path, trust=True)
    assert mark.exists()
    assert [r.message for r in caplog.records] == [
        f"{path}: its pickle asks for os.makedirs; opened all the same, since trust_files is true"
    ]
    caplog.clear()
    torch.save({"y": 3}, path)
    assert open_checkpoint(path, trust=True) == {"y": 3}  # it needs no trust: nothing to say
    assert not caplog.records


def test_nothing_stays_allowed(tmp_path):
    """What other code of the process may load is left as it was."""
    other = [slice]
    torch.serialization.add_safe_globals(other)
    before = set(torch.serialization.get_safe_globals())
    try:
        torch.save({"config": OmegaConf.create({"a": 1})}, tmp_path / "a.pt")
        open_checkpoint(tmp_path / "a.pt")
        assert set(torch.serialization.get_safe_globals()) == before
        with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
            torch.load(tmp_path / "a.pt", weights_only=True)
        torch.save({"config": slice(3)}, tmp_path / "b.pt")
        with pytest.raises(UntrustedFile, match="slice"):  # allowed elsewhere, not here
            open_checkpoint(tmp_path / "b.pt")
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before - set(other)))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (calling(Path("ran")), "names os.makedirs"),
        ({"backbone": {"model": "subprocess.Popen", "args": "true"}}, "subprocess.Popen"),
        ({"a": [{"b": {"head_cls": "os.system"}}]}, "os.system"),
        ({"_target_": "fairchem.core.common.utils.subprocess.run"}, "subprocess.run"),
        ({"_target_": "fairchem.core.common.utils.os"}, "utils.os"),
        ({"_target_": "torch.load", "f": "x.pt"}, "torch.load"),
        ({"_target_": "${name}", "name": "antigravity"}, r"\$\{name\}"),
        ({"_target_": "antigravity"}, "calls 'antigravity'"),
        ({"_target_": ["os", "system"]}, "calls"),
        ({"finetune_config": {"starting_checkpoint": "x"}}, "another file unchecked"),
        ({"loss": {"fn": "a-file-beside.Loss"}}, "a-file-beside.Loss"),
    ],
)
def test_a_config_names_parts_of_models_alone(config, reason):
    for stored in (config, [config], OmegaConf.create(config)):
        with pytest.raises(UntrustedFile, match=reason):
            require_model_parts("base.pt", stored)


@pytest.mark.parametrize("text", ["scale.pt", "oc25.v1", "notes.v1", ".hidden.v1", "a..b"])
def test_names_that_nobody_can_import_pass(tmp_path, monkeypatch, text):
    """Files, versions and the like, also beside a folder of that name; not where fairchem imports."""
    (tmp_path / "notes").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for config in ({"scale_file": text}, {"name": text}, {"a": [{"b": [text, 1.5]}]}):
        require_model_parts("base.pt", config)
    for key in ("_target_", "model", "module", "head_cls", "fn", "loss_name"):
        with pytest.raises(UntrustedFile, match=r"base\.pt: refused"):
            require_model_parts("base.pt", {"a": {key: text}})


@pytest.mark.parametrize("place", ["notes.py", "notes/__init__.py", "notes/v1.py"])
def test_names_that_can_be_imported_are_refused_everywhere(tmp_path, monkeypatch, place):
    """As an argument they may reach the registry; the file is found, and not run."""
    path, mark = tmp_path / place, tmp_path / "ran"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for config in ({"scale_file": "notes.v1.X"}, {"_target_": LOSS, "_args_": ["notes.v1.X"]}):
        with pytest.raises(UntrustedFile, match=r"names notes\.v1\.X"):
            require_model_parts("base.pt", config)
    assert not mark.exists()


def test_configs_of_models_pass():
    config = {
        "loss_fn": {"_target_": LOSS},
        "element_references": {"_target_": "torch.DoubleTensor", "_args_": [[0.0, -1.5]]},
        "scale": 0.5,
        "text": "Any sentence. With dots, 1.5 or e.g. 'UMA-1.1'",
        "file": "data/x.pt",
        "finetune_config": None,
        "model": "torch.nn.Linear",  # a user's own model that is imported already
    }
    require_model_parts("base.pt", OmegaConf.create(config))
    require_model_parts("base.pt", None)
