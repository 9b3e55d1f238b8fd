"""When a run saves what it can go on from, and what it keeps of its best epoch."""

from types import SimpleNamespace

import pytest
import torch
from fairchem.core.units.mlip_unit.mlip_unit import MLIPTrainEvalUnit
from torchtnt.framework.unit import AppStateMixin

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.fairchem2 import callbacks
from fairchem_gdeq.fairchem2.callbacks import Checkpoints, KeepBest
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer
from fairchem_gdeq.training.adjoints import Adjoints
from fairchem_gdeq.training.history import History
from fairchem_gdeq.training.length import Length


def saved_steps(monkeypatch, folder, minutes, seconds, first=True):
    """Steps before which a run with these step lengths saves; ``first``: it is rank 0."""
    clock, saved = [1000.0], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    if not first:  # the first rank's answers come from elsewhere
        monkeypatch.setattr(callbacks, "from_the_first", lambda _: len(saved) == 0)
    callback = Checkpoints(minutes)

    def save(path):
        saved.append(path.rpartition("/")[2])
        clock[0] += 50.0  # a slow disk is not time for another checkpoint

    callback.set_runner_callbacks(save, lambda path: None, str(folder))
    clock[0] += 500.0  # loading
    callback.on_train_start(None, None)
    for step, duration in enumerate(seconds):
        unit = SimpleNamespace(train_progress=SimpleNamespace(num_steps_completed=step))
        callback.on_train_step_start(None, unit)
        clock[0] += duration
    callback.on_train_end(None, None)
    return saved


@pytest.mark.parametrize(
    ("minutes", "seconds", "expected"),
    [
        (1, [10] * 20, ["step_6", "step_12", "step_18", "final"]),
        (1, [70] * 3, ["step_1", "step_2", "final"]),
        (0, [10] * 3, ["step_0", "step_1", "step_2", "final"]),
        (10, [10] * 20, ["final"]),
    ],
)
def test_checkpoints_are_minutes_apart(monkeypatch, tmp_path, minutes, seconds, expected):
    assert saved_steps(monkeypatch, tmp_path, minutes, seconds) == expected


def test_every_rank_saves_when_the_first_does(monkeypatch, tmp_path):
    """Saving needs all of them; clocks differ."""
    assert saved_steps(monkeypatch, tmp_path, 10, [10] * 3, first=False) == ["step_0", "final"]


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint_minutes=-1: expected a time >= 0"):
        Checkpoints(-1)


def test_adjoints_are_in_the_checkpoints_to_go_on_from_alone(monkeypatch, tmp_path):
    """``results/best`` is scored, not gone on from."""
    saved = []
    monkeypatch.setattr(MLIPTrainEvalUnit, "save_state", lambda unit, place: saved.append(place))
    unit = GDEQTrainer.__new__(GDEQTrainer)  # with what saving reads of a trainer alone
    AppStateMixin.__init__(unit)
    unit.history, unit.adjoints = History("last"), Adjoints()
    unit.adjoints.known[3] = torch.ones(2, 3)
    unit.alpha, unit.alpha_optimizer, unit.decoder = torch.tensor(0.05), None, None
    unit.optimizer, unit.length = torch.optim.AdamW([torch.zeros(1)]), Length(2, 4)
    unit.history.add_epoch(1, {"delta_q_mean": 2.0}, [], Basin())
    keep = KeepBest()
    keep.folder = tmp_path / "best"
    keep.on_eval_epoch_end(None, unit)
    unit.save_state(str(tmp_path / "final"))
    assert [path.name for path in keep.folder.iterdir()] == ["gdeq_state.pt"]
    names = sorted(path.name for path in (tmp_path / "final").iterdir())
    assert names == ["adjoints.0of1.pt", "checksums.json", "gdeq_state.pt"]
    assert saved == [str(tmp_path / f"{name}.partial") for name in ("best", "final")]
