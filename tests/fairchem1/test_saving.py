"""What is saved when: adjoints go with the checkpoint to go on from, and with no other file."""

import os

import pytest
import torch
from fairchem.core.trainers import OCPTrainer

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.fairchem1.trainer import GDEQTrainer
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.history import History
from tests.fairchem1 import running


def test_the_best_epoch_leaves_the_adjoints_of_the_checkpoint(monkeypatch, tmp_path):
    """Those of a later step would be recalled by a run that goes on from an earlier one."""
    files = []
    monkeypatch.setattr(OCPTrainer, "save", lambda self, metrics, file, state: files.append(file))
    trainer = GDEQTrainer.__new__(GDEQTrainer)  # with what saving reads of a trainer alone
    trainer.config = {"cmd": {"checkpoint_dir": str(tmp_path)}, "optim": {"max_epochs": 2}}
    trainer.is_debug, trainer.history, trainer.adjoints = False, History("last"), Adjoints()

    def known():
        return torch.load(tmp_path / "adjoints.0of1.pt", weights_only=True)["rows"].tolist()

    trainer.adjoints.known[3] = torch.ones(2, 3)
    trainer.save()
    assert known() == [3]
    trainer.adjoints.known[4] = torch.ones(2, 3)
    trainer.history.add_epoch(1, {"delta_q_mean": 2.0}, [], Basin())
    trainer.update_best("delta_q_mean", {})
    assert known() == [3] and files == ["checkpoint.pt.part", "best_checkpoint.pt.part"]
    state = torch.load(tmp_path / "gdeq_state.pt", weights_only=True)
    assert state["history"]["epochs"] == [{"epoch": 1, "delta_q_mean": 2.0, "ends": []}]
    trainer.save()
    assert known() == [3, 4]


def test_what_cannot_be_written_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    """fairchem would write over it."""
    trainer = GDEQTrainer.__new__(GDEQTrainer)
    trainer.config = {"cmd": {"checkpoint_dir": str(tmp_path)}, "optim": {"max_epochs": 2}}
    trainer.is_debug, trainer.history, trainer.adjoints = False, History("last"), Adjoints()
    full = [False]

    def save(self, metrics, file, state):
        (tmp_path / file).write_text("cut sho" if full[0] else "whole")
        if full[0]:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")
        return str(tmp_path / file)

    monkeypatch.setattr(OCPTrainer, "save", save)
    assert trainer.save() == str(tmp_path / "checkpoint.pt")
    full[0] = True
    with pytest.raises(
        OSError, match=r"checkpoint.pt could not be written .*start the same command"
    ):
        trainer.save()
    assert (tmp_path / "checkpoint.pt").read_text() == "whole"


def test_processes_of_one_machine_share_its_cores(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with running.trainer_on(tmp_path):
        assert asked == [3]
