"""Presets: each goes with every config that takes one, and the command line counts more."""

import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "preset").glob("*.yaml"))
TAKERS = [
    path.relative_to(CONFIGS)
    for path in sorted(CONFIGS.glob("*/*.yml"))
    if re.search("/preset:|/si/base@", path.read_text())
]


OWN = {  # what a config sets itself, whatever the preset
    "si/gdeq_adapt.yml": {"lr"},
    "si/adapt_zenodo.yml": {"lr", "epochs"},
    "oc25/gdeq_ti_smoke.yml": {"updates"},
    "si/ft_static.yml": {"updates", "ema_decay"},
}


def composed(config, *overrides):
    with initialize_config_dir(str(CONFIGS / config.parent), version_base="1.1"):
        return compose(config.name, overrides=list(overrides))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_it_says(preset):
    said = yaml.safe_load((CONFIGS / "preset" / f"{preset}.yaml").read_text())
    forces = said.pop("forces", {})
    for config in TAKERS:
        own = OWN.get(str(config), set())
        found = composed(config, f"preset={preset}")
        for given, there in ((said, found), (forces, found.forces)):
            asked = {key: value for key, value in given.items() if key not in own}
            assert {key: there[key] for key in asked} == asked, config


@pytest.mark.parametrize("config", TAKERS, ids=str)
def test_the_command_line_counts_more(config):
    found = composed(config, "preset=full", "lr=0.5", "forces.alone=0.25", "forces.updates=9")
    assert (found.lr, found.forces.alone, found.forces.updates) == (0.5, 0.25, 9)


def test_there_are_presets_and_configs_that_take_them():
    assert PRESETS == ["full", "small_data"]
    assert {"own/gdeq.yml", "si/gdeq.yml", "oc25/gdeq_ti.yml"} <= {str(config) for config in TAKERS}
