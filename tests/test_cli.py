"""``--mode`` and the packaged configs: known to ``fairchem -c``, invisible to everything else."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests import commands

ROOT = Path(__file__).parents[1]
RUNNER = """
from fairchem.core.components.runner import Runner

class Echo(Runner):
    def __init__(self, mode, extra=0):
        self.mode, self.extra = mode, extra
    def run(self):
        print(f"ECHO mode={self.mode} extra={self.extra}")
    def save_state(self, checkpoint_location, is_preemption=False):
        return True
    def load_state(self, checkpoint_location):
        pass
"""


@pytest.fixture
def echo(tmp_path):
    """A config whose runner prints its mode; returns a function that runs fairchem on it."""
    (tmp_path / "echo_runner.py").write_text(RUNNER)
    config = {
        "mode": "train",
        "extra": 1,
        "job": {"device_type": "CPU", "scheduler": {"mode": "LOCAL"}, "run_dir": str(tmp_path)},
        "runner": {"_target_": "echo_runner.Echo", "mode": "${mode}", "extra": "${extra}"},
    }

    def run(*arguments, target="echo_runner.Echo"):
        config["runner"]["_target_"] = target
        (tmp_path / "echo.yml").write_text(yaml.safe_dump(config))
        environment = {"PYTHONPATH": str(tmp_path)}
        return commands.fairchem("-c", tmp_path / "echo.yml", *arguments, env=environment)

    return run


@pytest.fixture
def plugin(monkeypatch):
    """The plugin module; whatever its import wraps is put back afterwards."""
    import hydra

    monkeypatch.setattr(hydra, "compose", hydra.compose)
    return importlib.import_module("hydra_plugins.fairchem_gdeq")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mode", "validate"], "mode=validate extra=1"),
        (["--mode=predict", "extra=7"], "mode=predict extra=7"),
        (["mode=validate", "extra=3"], "mode=validate extra=3"),
        ([], "mode=train extra=1"),
    ],
)
def test_spellings_and_ordinary_overrides(echo, arguments, expected):
    done = echo(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"ECHO {expected}" in done.stdout


@pytest.mark.parametrize("arguments", [["--mode", "fly"], ["mode=fly"]])
def test_unknown_mode_is_refused_before_anything_is_loaded(echo, arguments):
    done = echo(*arguments, target="fairchem_gdeq.fairchem2.runner.GDEQRunner")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last
        == "fairchem: unknown mode 'fly': choose one of train, validate, predict, diagnose, audit"
    )


@pytest.mark.parametrize(
    "overrides", [["--mode"], ["--mode="], ["--mode", "extra=2"], ["--mode", "--other"]]
)
def test_mode_without_a_value(plugin, overrides):
    with pytest.raises(SystemExit, match="--mode needs a value: one of train, validate, predict"):
        plugin.translate(overrides)


def test_mode_without_a_value_on_the_command_line(echo):
    done = echo("--mode")
    assert done.returncode != 0
    assert "--mode needs a value: one of train, validate, predict" in done.stderr


@pytest.mark.parametrize(
    "config",
    [
        {"runner": None, "mode": "fly"},
        {"runner": [1], "mode": "fly"},
        {"mode": "fly"},
        {"runner": {"_target_": "fairchem_gdeq.Any", "mode": "train"}},
        {"runner": {"_target_": "other.Runner"}, "mode": "fly"},
    ],
)
def test_configs_that_are_not_ours_are_not_checked(plugin, config):
    plugin.check(OmegaConf.create(config))


def test_other_runners_may_have_their_own_modes(echo):
    done = echo("--mode", "fly")
    assert "ECHO mode=fly" in done.stdout


@pytest.mark.parametrize("suffix", ["yml", pytest.param("yaml", marks=pytest.mark.slow)])
def test_packaged_configs_merge_at_the_root_from_any_folder(tmp_path, suffix):
    """A ``.yml`` is composed from a temporary folder: only the search path can resolve this."""
    file = tmp_path / f"mine.{suffix}"
    file.write_text("defaults: [/si/base@_global_, _self_]\nhorizon: 7\n")
    script = f"""
from fairchem.core._cli import get_hydra_config_from_yaml
options = ["--mode", "predict", "job.run_dir={tmp_path}", "data={ROOT}/data/si"]
options += ["base={ROOT}/data/si/base/esen.pt"]
config = get_hydra_config_from_yaml({str(file)!r}, options)
print("COMPOSED", config.runner.mode, config.runner.train_eval_unit.signal.horizon)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "COMPOSED predict 7" in done.stdout, done.stderr[-2000:]


def test_a_hydra_main_program_is_untouched(tmp_path):
    (tmp_path / "conf.yaml").write_text("mode: a\n")
    (tmp_path / "program.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base='1.3', config_path='.', config_name='conf')\n"
        "def main(config):\n"
        "    print('MODE', config.mode)\n"
        "main()\n"
    )

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "program.py", "hydra.run.dir=.", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    assert "MODE fly" in run("mode=fly").stdout
    refused = run("--mode", "fly")
    assert refused.returncode != 0
    assert "unrecognized arguments: --mode" in refused.stderr


def test_other_hydra_programs_are_untouched(tmp_path):
    (tmp_path / "conf.yaml").write_text("mode: a\n")
    script = f"""
import sys
import hydra
from hydra import initialize_config_dir
with initialize_config_dir({str(tmp_path)!r}, version_base="1.3"):
    print(hydra.compose("conf", overrides=["mode=anything"]).mode)
    try:
        hydra.compose("conf", overrides=["--mode", "x"])
    except Exception as error:
        print(type(error).__name__)
print("torch" in sys.modules, "fairchem" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["anything", "OverrideParseException", "False", "False"]
