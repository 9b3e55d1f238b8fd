"""A folder of checkpoints and a config that is started in it."""

import json
import logging

import pytest
from omegaconf import OmegaConf

from fairchem_gdeq.training.same_run import (
    KEPT,
    PROCESSES,
    keep_settings,
    require_same_run,
    settings_of,
    warn_of_another,
)

CONFIG = {
    "epochs": 2,
    "job": {"seed": 0, "run_dir": "a", "scheduler": {"ranks_per_node": 1, "num_nodes": 2}},
    "runner": {
        "mode": "train",
        "max_epochs": "${epochs}",
        "train_dataloader": {"dataset": {"src": ["x", "y"], "hint": "download it"}},
        "train_eval_unit": {
            "optimizer_fn": {"lr": 1e-3},
            "signal": {"horizon": 20, "spare": 0.5, "guidance_memory": None},
            "is2rs": {"alpha": 0.05},
        },
    },
}


def settings(**changes):
    """Of the config, changed at dotted keys."""
    config = OmegaConf.create(CONFIG)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return settings_of(config)


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with a checkpoint of the config."""
    folder = tmp_path / "checkpoints"
    keep_settings(settings(), folder)
    (folder / "step_1").mkdir()
    (folder / "step_1" / ".metadata").touch()
    return folder


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("runner__train_eval_unit__optimizer_fn__lr", 2e-3, "lr: 0.001 there, 0.002 now"),
        ("runner__train_dataloader__dataset__src", ["x"], r"src: \['x', 'y'\] there, \['x'\] now"),
        ("job__seed", 3, "job.seed: 0 there, 3 now"),
        ("epochs", 1, "max_epochs: 2 there, 1 now"),
    ],
)
def test_what_would_be_mixed_is_refused(checkpoints, key, value, said):
    with pytest.raises(ValueError, match=rf"(?s){said}.*timestamp_id=NAME.*{KEPT}"):
        require_same_run(settings(**{key: value}), checkpoints)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("job__run_dir", "elsewhere"),
        ("runner__train_dataloader__dataset__hint", "ask us"),
        ("runner__train_eval_unit__signal__guidance_memory", "4GB"),
        ("runner__train_eval_unit__compiled", True),
        ("runner__mode", "validate"),
    ],
)
def test_what_changes_no_number_may_differ(checkpoints, key, value, caplog):
    require_same_run(settings(**{key: value}), checkpoints)
    assert caplog.text == ""


def test_what_goes_on_with_a_word(checkpoints, caplog):
    with caplog.at_level(logging.INFO):
        require_same_run(settings(epochs=5, job__scheduler__ranks_per_node=2), checkpoints)
    assert "runner.max_epochs: 2 there, 5 now" in caplog.text
    assert "job.ranks: 2 there, 4 now" in caplog.text


def test_the_same_ranks_on_other_nodes(checkpoints, caplog):
    other = {"job__scheduler__ranks_per_node": 2, "job__scheduler__num_nodes": 1}
    require_same_run(settings(**other), checkpoints)
    assert caplog.text == ""


def test_a_longer_run_is_said_once(tmp_path, caplog):
    """Its schedule has the same epochs."""
    rate = "runner__train_eval_unit__cosine_lr_scheduler_fn__epochs"
    keep_settings(settings(**{rate: "${epochs}"}), tmp_path)
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / ".metadata").touch()
    require_same_run(settings(epochs=5, **{rate: "${epochs}"}), tmp_path)
    assert caplog.text.count("2 there, 5 now") == 1 and "runner.max_epochs" in caplog.text
    caplog.clear()
    require_same_run(settings(**{rate: 7}), tmp_path)
    assert "cosine_lr_scheduler_fn.epochs: 2 there, 7 now" in caplog.text


def test_the_last_line_names_what_differs(checkpoints):
    with pytest.raises(ValueError, match="other settings") as caught:
        require_same_run(settings(job__seed=3), checkpoints)
    assert (
        str(caught.value).splitlines()[-1].startswith("job.seed: expected the settings of the run")
    )


def test_many_differences_are_counted(checkpoints):
    many = {f"runner__train_eval_unit__signal__key{i}": 0 for i in range(20)}
    keep_settings(settings(**many), checkpoints)
    with pytest.raises(ValueError, match=r"and 8 more"):
        require_same_run(settings(**dict.fromkeys(many, 1)), checkpoints)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is2rs__relaxer__solver", "picard"),  # in the place of a section
        ("signal__adjoint", {"damping": 0.1}),  # in the place of nothing
        ("overrides__backbone__always_use_pbc", False),
    ],
)
def test_what_only_one_of_them_has_is_a_difference(tmp_path, key, value):
    key = f"runner__train_eval_unit__{key}"
    sections = {
        "runner__train_eval_unit__is2rs__relaxer": {"solver": {"_target_": "x.LBFGS", "m": 5}}
    }
    keep_settings(settings(**sections), tmp_path)
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / ".metadata").touch()
    require_same_run(settings(**sections), tmp_path)
    with pytest.raises(ValueError, match=rf"{key.replace('__', '.')}.*: 'nothing' there"):
        require_same_run(settings(**sections, **{key: value}), tmp_path)


def test_sizes_that_an_older_version_kept_are_no_difference(tmp_path):
    (tmp_path / "data.aselmdb").write_bytes(b"rows")
    named = settings(runner__train_dataloader__dataset__src=[str(tmp_path)])
    stored = json.loads(named)
    (key,) = [key for key in stored if key.endswith("what is in it")]
    checkpoints = tmp_path / "checkpoints"
    keep_settings(json.dumps(stored | {key: "4 bytes"}), checkpoints)
    (checkpoints / "step_1").mkdir()
    (checkpoints / "step_1" / ".metadata").touch()
    require_same_run(named, checkpoints)


def test_fairchem_1_goes_on_with_as_many_processes(tmp_path):
    """Its place in an epoch is a number of steps, of which others take other structures."""
    (tmp_path / "checkpoint.pt").touch()
    keep_settings(json.dumps({"optim.lr": 1}), tmp_path)  # of before that was kept
    now = json.dumps({"optim.lr": 1, PROCESSES: 2})
    require_same_run(now, tmp_path)
    keep_settings(now, tmp_path)
    require_same_run(now, tmp_path)
    with pytest.raises(ValueError, match=r"processes: 2 there, 1 now"):
        require_same_run(json.dumps({"optim.lr": 1, PROCESSES: 1}), tmp_path)


def test_keys_of_another_version_are_no_difference(checkpoints):
    kept = checkpoints / KEPT
    stored = json.loads(kept.read_text())
    kept.write_text(json.dumps(stored | {"package": "0.0.1", "runner.gone": 1}))
    require_same_run(settings(), checkpoints)
    with pytest.raises(ValueError, match=r"job\.seed: 0 there, 3 now"):
        require_same_run(settings(job__seed=3), checkpoints)


def test_another_file_under_the_same_name_is_a_difference(tmp_path):
    base, data = tmp_path / "base.pt", tmp_path / "train"
    base.write_bytes(b"weights")
    data.mkdir()
    (data / "data.aselmdb").write_bytes(b"rows")
    (data / "data.aselmdb-lock").write_bytes(b"")
    named = {
        "runner__train_eval_unit__model__path": str(base),
        "runner__train_dataloader__dataset__src": [str(data)],
    }
    checkpoints = tmp_path / "checkpoints"
    keep_settings(settings(**named), checkpoints)
    (checkpoints / "step_1").mkdir()
    (checkpoints / "step_1" / ".metadata").touch()
    (data / "data.aselmdb-lock").write_bytes(b"held")
    require_same_run(settings(**named), checkpoints)
    base.write_bytes(b"others.")
    with pytest.raises(ValueError, match=r"model\.path, what is in it"):
        require_same_run(settings(**named), checkpoints)
    base.unlink()  # not to be seen from here
    require_same_run(settings(**named), checkpoints)
    (data / "data.aselmdb").write_bytes(
        b"rowz"
    )  # of the same size, as LMDB's whole pages often are
    with pytest.raises(ValueError, match=r"src, what is in it: '\w{12}' there, '\w{12}' now"):
        require_same_run(settings(**named), checkpoints)


@pytest.mark.parametrize("text", ["[1]", '{"epochs": 3}', "{", "null"])
def test_what_is_kept_and_no_settings_is_named(checkpoints, text):
    (checkpoints / KEPT).write_text(text)
    with pytest.raises(ValueError, match=f"{KEPT}: expected the settings of the run's checkpoints"):
        require_same_run(settings(), checkpoints)


def test_nothing_was_trained_there_yet(checkpoints):
    """What a kill has left of a first checkpoint is nothing to go on from."""
    (checkpoints / "step_1" / ".metadata").unlink()
    require_same_run(settings(job__seed=3), checkpoints)
    (checkpoints / "step_1" / ".metadata").touch()
    (checkpoints / KEPT).unlink()  # of a version that kept none
    require_same_run(settings(job__seed=3), checkpoints)


def test_a_table_of_two_settings_is_said(checkpoints, caplog):
    changed = {"is2rs__alpha": 0.2, "optimizer_fn__lr": 1.0}
    other = settings(**{f"runner__train_eval_unit__{key}": v for key, v in changed.items()})
    warn_of_another(other, checkpoints)
    assert "is2rs.alpha: 0.05 there, 0.2 now" in caplog.text and "lr" not in caplog.text
