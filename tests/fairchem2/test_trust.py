"""Bases and checkpoints of fairchem 2 run nothing when they are opened, unless they are trusted."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fairchem_gdeq.fairchem2.base import load_base, load_tasks
from fairchem_gdeq.fairchem2.runner import GDEQRunner
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.running import fairchem
from tests.payloads import Payload, calling

ROOT = Path(__file__).parents[2]
SHIPPED = {"si/base/esen.pt": "si", "si/base/adapt.pt": "si", "slabs/base/esen.pt": "oc25"}


def tuned(checkpoint, trust_files=False):
    """What the runner does with ``checkpoint=``."""
    runner = SimpleNamespace(
        results=Path("none"),
        checkpoint=str(checkpoint),
        trust_files=trust_files,
        base=SimpleNamespace(model=small.model("esen")),
        train_eval_unit=SimpleNamespace(compiled=False, is2rs=IS2RS(), force_task=small.tasks()[0]),
    )
    return GDEQRunner.tuned(runner)


OPENERS = {
    "base": load_base,
    "tasks": partial(load_tasks, dataset="si"),
    "checkpoint": tuned,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "esen.pt"
    small.checkpoint(path)
    return path


def changed(good, path, change):
    stored = torch.load(good, weights_only=False)
    change(stored)
    torch.save(stored, path)
    return path


def in_pickle(mark, stored):
    stored.tasks_config.append(Payload(mark))


def in_tasks(mark, stored):
    stored.tasks_config[0]["loss_fn"] = calling(mark)


def in_model(mark, stored):
    stored.model_config["heads"]["evil"] = {"module": "os.makedirs", "name": str(mark)}


def whole_model(mark, stored):
    stored.model_config = calling(mark)


@pytest.mark.parametrize("where", [in_pickle, in_tasks, in_model, whole_model])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_payload_does_not_run(good, tmp_path, opener, where):
    mark = tmp_path / "ran"
    path = changed(good, tmp_path / "evil.pt", partial(where, mark))
    with pytest.raises(ValueError, match=r"os\.makedirs.*Nothing of it was run") as refused:
        OPENERS[opener](str(path))
    assert str(path) in str(refused.value) and "trust_files=true" in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize("opener", OPENERS)
def test_a_trusted_file_is_opened(good, tmp_path, opener, caplog):
    mark = tmp_path / "ran"

    def beside(stored):
        stored.note = Payload(mark)

    path = str(changed(good, tmp_path / "mine.pt", beside))
    with caplog.at_level(logging.WARNING):
        assert OPENERS[opener](path, trust_files=True)
    assert mark.exists()
    assert sum("trust_files is true" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bases_need_no_trust(name, caplog):
    path = str(ROOT / "data" / name)
    assert sum(p.numel() for p in load_base(path).parameters()) > 1000
    assert [task.property for task in load_tasks(path, SHIPPED[name])] == ["forces"]
    assert not caplog.records


def test_what_is_built_is_what_was_checked(good, tmp_path, monkeypatch):
    """The file is read once: swapping it after the check changes nothing."""
    from fairchem_gdeq.fairchem2 import base

    mark, path = tmp_path / "ran", tmp_path / "base.pt"
    path.write_bytes(good.read_bytes())
    check = base.require_model_parts

    def swap(*args):
        check(*args)
        changed(good, path, partial(whole_model, mark))

    monkeypatch.setattr(base, "require_model_parts", swap)
    load_base(str(path))
    load_tasks(str(good), "si")
    assert not mark.exists()


def test_not_an_inference_checkpoint(tmp_path):
    torch.save({"state_dict": {}, "config": {}}, tmp_path / "of_fairchem1.pt")
    with pytest.raises(ValueError, match=r"expected an inference checkpoint of fairchem 2.*dict"):
        load_base(str(tmp_path / "of_fairchem1.pt"))


def test_the_learnt_alpha_beside_a_checkpoint(good, tmp_path):
    path, mark = tmp_path / "inference_ckpt.pt", tmp_path / "ran"
    path.write_bytes(good.read_bytes())
    torch.save({"alpha": torch.tensor(0.125)}, tmp_path / "gdeq_state.pt")
    assert tuned(path).is2rs.alpha == 0.125
    torch.save({"alpha": Payload(mark)}, tmp_path / "gdeq_state.pt")
    with pytest.raises(
        ValueError, match=r"gdeq_state\.pt: refused, its pickle asks for os\.makedirs"
    ):
        tuned(path)
    assert not mark.exists()


def test_as_typed(inputs, good, tmp_path):
    """``trust_files=true`` reaches what opens files; without it the message ends the run."""
    folder, mark = tmp_path / "inputs", tmp_path / "ran"
    folder.mkdir()
    for split in ("train", "val", "test"):
        (folder / split).symlink_to(inputs / split)

    def beside(stored):
        stored.note = Payload(mark)

    changed(good, folder / "esen.pt", beside)
    arguments = (folder, tmp_path, "--mode", "predict", f"checkpoint={folder / 'esen.pt'}")
    code, out, err = fairchem(*arguments)
    assert code != 0 and "esen.pt: refused" in err and not mark.exists()
    code, out, err = fairchem(*arguments, "trust_files=true")
    assert code == 0, err[-2000:]
    assert (
        mark.exists() and err.count("trust_files is true") + out.count("trust_files is true") >= 1
    )
