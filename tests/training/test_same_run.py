"""A folder of checkpoints and a config that is started in it."""

import logging

import pytest
from omegaconf import OmegaConf

from fairchem_gdeq.training.same_run import KEPT, keep_config, require_same_run, warn_of_another

CONFIG = {
    "job": {"seed": 0, "run_dir": "a", "scheduler": {"ranks_per_node": 1, "num_nodes": 1}},
    "runner": {
        "mode": "train",
        "max_epochs": 2,
        "train_dataloader": {"dataset": {"src": ["x", "y"], "hint": "download it"}},
        "train_eval_unit": {"optimizer_fn": {"lr": 1e-3}, "signal": {"horizon": 20, "spare": 0.5}},
    },
}


@pytest.fixture
def start(tmp_path):
    """Starts a config, changed at dotted keys, in a folder with a checkpoint of ``CONFIG``."""
    checkpoints, config = tmp_path / "checkpoints", tmp_path / "config.yaml"
    OmegaConf.save(CONFIG, config)
    keep_config(config, checkpoints)
    (checkpoints / "step_1").mkdir()

    def started(**changes):
        now = OmegaConf.create(CONFIG)
        for key, value in changes.items():
            OmegaConf.update(now, key.replace("__", "."), value, force_add=True)
        OmegaConf.save(now, config)
        require_same_run(config, checkpoints)

    started.checkpoints = checkpoints
    return started


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("runner__train_eval_unit__optimizer_fn__lr", 2e-3, "lr: 0.001 there, 0.002 now"),
        ("runner__train_dataloader__dataset__src", ["x"], r"src: \['x', 'y'\] there, \['x'\] now"),
        ("runner__train_eval_unit__signal__loss", "delta_q", "loss: not there, 'delta_q' now"),
        ("job__seed", 3, "job.seed: 0 there, 3 now"),
        ("job__scheduler__ranks_per_node", 2, "ranks_per_node: 1 there, 2 now"),
    ],
)
def test_what_would_be_mixed_is_refused(start, key, value, said):
    with pytest.raises(ValueError, match=rf"(?s){said}.*timestamp_id=NAME"):
        start(**{key: value})


def test_what_changes_no_number_may_differ(start):
    start()
    start(job__run_dir="elsewhere", runner__train_dataloader__dataset__hint="ask us")
    start(runner__mode="validate", runner__callbacks=["another"])


def test_a_run_may_be_made_longer_and_that_is_said(start, caplog):
    with caplog.at_level(logging.INFO):
        start(runner__max_epochs=5)
    assert "the run is made longer: runner.max_epochs: 2 there, 5 now" in caplog.text


def test_many_differences_are_counted(start):
    with pytest.raises(ValueError, match=r"and 8 more"):
        start(**{f"runner__train_eval_unit__signal__key{i}": i for i in range(20)})


def test_nothing_was_trained_there_yet(start):
    (start.checkpoints / "step_1").rmdir()
    start(job__seed=3)
    (start.checkpoints / "step_1").mkdir()
    (start.checkpoints / KEPT).unlink()  # of a version that kept none
    start(job__seed=3)


def test_a_table_of_two_settings_is_said(start, tmp_path, caplog):
    config = tmp_path / "config.yaml"
    now = OmegaConf.create(CONFIG)
    now.runner.train_eval_unit.is2rs = {"alpha": 0.2}
    now.runner.train_eval_unit.optimizer_fn.lr = 1.0
    OmegaConf.save(now, config)
    warn_of_another(config, start.checkpoints)
    assert "is2rs.alpha: not there, 0.2 now" in caplog.text and "lr" not in caplog.text
