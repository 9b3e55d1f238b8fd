"""A step of a run with forces beside its signal: which batches, which losses, which updates."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fairchem_gdeq.training import replay as module
from fairchem_gdeq.training.replay import (
    Replay,
    ReplaySettings,
    on_the_way,
    optimize,
    require_forces,
)
from fairchem_gdeq.training.steps import Update

BATCH = SimpleNamespace(natoms=torch.tensor([3, 4]), pos=torch.zeros(7, 3))


class Run:
    """One weight w. Forces: loss n w for batch n of the run; signal: a gradient of 7."""

    def __init__(self, monkeypatch, **settings):
        self.weight = torch.tensor(2.0, requires_grad=True)
        self.asked, self.updates = [], []
        self.replay = None
        if settings:
            loss = self.weight.__rmul__
            self.replay = Replay(ReplaySettings("frames", **settings), self.batch, loss)
        monkeypatch.setattr(module, "describe", lambda report, operator: {"train/loss": report})

    def batch(self, number, batch, report):
        assert batch is BATCH
        self.asked.append((number, report))
        return number

    def signal(self):
        self.weight.grad = torch.tensor(7.0)
        return "report", "operator"

    def update(self, count, beside):
        if beside is not None:
            own, self.weight.grad = self.weight.grad, None
            beside.differentiate()
            self.updates.append((count, float(own), float(self.weight.grad), beside.limit))
        else:
            self.updates.append((count, float(self.weight.grad)))
        self.weight.grad = None
        return Update(torch.tensor(1.0), True, 0.25)

    def step(self, step, steps=4):
        silent = self.replay is not None and self.replay.settings.without_signal(step, steps)
        return optimize(step, silent, BATCH, self.signal, self.update, self.replay)


def test_without_forces_a_step_is_the_signals(monkeypatch):
    run = Run(monkeypatch)
    log = run.step(0)
    assert run.updates == [(2, 7.0)]
    assert log == {"train/loss": "report", "train/grad_norm": 1.0, "train/skipped_update": 0.0}


def test_both_in_a_step(monkeypatch):
    run = Run(monkeypatch, lambda_forces=3.0, limit=0.5)
    log = run.step(2)
    assert run.asked == [(2, "report")] and run.updates == [(2, 7.0, 6.0, 0.5)]
    assert log["train/forces_loss"] == 4.0 and log["train/signal_share"] == 0.25


def test_updates_on_forces_come_first_and_have_batches_of_their_own(monkeypatch):
    run = Run(monkeypatch, lambda_forces=1.0, updates=2)
    logs = [run.step(step) for step in range(2)]
    assert [number for number, _ in run.asked] == [0, 1, 2, 3, 4, 5]
    assert [report for _, report in run.asked] == [None, None, "report"] * 2
    assert run.updates[3:] == [(1, 3.0), (1, 4.0), (2, 7.0, 5.0, 1.0)]
    assert logs[1]["train/forces_loss"] == 2.0 * (3 + 4 + 5) / 3


def test_a_step_without_the_signal(monkeypatch):
    """It takes as many batches of forces as the others, so that their numbers stay theirs."""
    run = Run(monkeypatch, lambda_forces=1.0, updates=1, alone=0.5)
    logs = [run.step(step) for step in range(4)]
    assert [number for number, _ in run.asked] == list(range(8))
    assert [report is None for _, report in run.asked] == [True] * 4 + [True, False] * 2
    assert logs[1]["train/loss"] == 2.0 * 3 and logs[1]["train/signal_share"] == 0.0
    assert "train/delta_q_guided" not in logs[1]


def test_what_a_model_draws_depends_on_the_batch_alone(monkeypatch):
    """Neither on what was drawn before, as in another process, nor does it change what comes after."""
    run = Run(monkeypatch, updates=0)
    drawn = []
    run.replay = replace(run.replay, loss=lambda n: drawn.append(torch.rand(3)) or n * run.weight)
    for seed in (0, 1):
        torch.manual_seed(seed)
        for step in (1, 2):
            run.replay.differentiate(step, 0, BATCH, None, [])
        after = torch.rand(2)
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(2), after)
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(("alone", "silent"), [(0.0, 0), (0.5, 4), (0.7, 6), (1.0, 8)])
def test_the_share_of_steps_without_the_signal(alone, silent):
    settings = ReplaySettings("frames", alone=alone)
    found = [settings.without_signal(step, 8) for step in range(8)]
    assert found == [True] * silent + [False] * (8 - silent)
    # A longer run has had that share already; all of it is all.
    assert settings.without_signal(8, 8) == (alone == 1)


def test_places_on_the_way():
    batch = SimpleNamespace(
        natoms=torch.tensor([1, 2]), batch=torch.tensor([0, 1, 1]), pos=torch.zeros(3, 3)
    )
    ends = torch.ones(3, 3)
    ends[2] = math.nan
    report = SimpleNamespace(handoff=ends)
    found = on_the_way(batch, report, 5, seed=1)
    places = np.random.default_rng([1, 5]).uniform(size=2)
    np.testing.assert_allclose(found[:, 0], [*places, 0.0], rtol=1e-6)
    assert not torch.equal(found, on_the_way(batch, report, 6, seed=1))


def test_frames_without_forces_are_counted_and_named():
    good = np.zeros((2, 3))
    require_forces([("a", good), ("b", torch.zeros(2, 3))], ["here"])
    with pytest.raises(ValueError, match=r"frames here, there: 2 of 3 have no forces.*such as b\."):
        require_forces([("a", good), ("b", None), ("c", good * np.nan)], ["here", "there"])
