"""The ``task`` section of a fairchem 1 config."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fairchem_gdeq.fairchem1.settings import Settings

TASK = {"base": "base.pt", "eval_max_atoms": 100}


@pytest.mark.parametrize(
    ("task", "in_training", "in_evaluation"),
    [
        ({}, 20, 20),
        ({"horizon": 40}, 40, 40),
        ({"horizon": 40, "relaxer": {"fmax": 0.03}}, 40, 40),
        ({"horizon": 40, "relaxer": {"horizon": 0}}, 40, 0),
    ],
)
def test_plain_steps_of_training_and_evaluation(task, in_training, in_evaluation):
    settings = Settings.read(TASK | task)
    assert settings.make_signal().horizon == in_training
    assert settings.is2rs.relaxer.horizon == in_evaluation


def test_what_is_not_given_is_as_the_shared_config_says():
    shared = Path(__file__).parents[2] / "configs" / "shared" / "finetune_fairchem1.yml"
    stated = Settings.read(TASK | yaml.safe_load(shared.read_text())["task"])
    bare = Settings.read(TASK)
    assert stated.make_signal() == bare.make_signal()
    assert replace(stated, settings={}) == replace(bare, settings={})
