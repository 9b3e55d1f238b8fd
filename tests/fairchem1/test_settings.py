"""The ``task`` section of a fairchem 1 config."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fairchem_gdeq.fairchem1.held_frames import HeldFrames
from fairchem_gdeq.fairchem1.replay import ForceReplay
from fairchem_gdeq.fairchem1.settings import Settings
from fairchem_gdeq.relax import Descent
from fairchem_gdeq.training.replay import for_signal

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


def test_forces_are_those_of_the_section():
    section = {"src": ["a", "b"], "batch_size": 3, "limit": 0.5, "updates": 1, "alone": 0.5}
    found = Settings.read(TASK | {"forces": section}).forces.replay
    assert found == ForceReplay(["a", "b"], batch_size=3, limit=0.5, updates=1, alone=0.5)
    assert found.folders == ["a", "b"] and found.lambda_forces == 10.0


def test_frames_may_be_held_out_with_and_without_others_to_train_on():
    section = {"val": "v", "format": "lmdb"}
    for more in ({}, {"src": "none", "updates": 1}, {"src": "a"}):
        found = Settings.read(TASK | {"forces": section | more}).forces
        assert found.held == HeldFrames("v", "lmdb")
        assert found.replay == (ForceReplay("a", format="lmdb") if more == {"src": "a"} else None)
    assert Settings.read(TASK).forces.held is None


def test_the_shared_config_has_the_defaults_of_forces():
    shared = Path(__file__).parents[2] / "configs" / "shared" / "finetune_fairchem1.yml"
    section = yaml.safe_load(shared.read_text())["task"]["forces"]
    assert Settings.read(TASK | {"forces": section}).forces.replay is None
    found = Settings.read(TASK | {"forces": section | {"src": "a"}}).forces.replay
    assert found == ForceReplay("a")


def test_how_plain_steps_follow_one_another():
    task = Settings.read(TASK | {"momentum": 0.05, "annealing": 0.99}).is2rs
    assert task.descent == Descent(0.05, 0.99)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"momentum": 1.0}, r"task: momentum=1\.0: expected a number from 0 and below 1"),
        ({"annealing": 0.0}, r"task: annealing=0\.0: expected a number above 0"),
        ({"signal": "direct", "forces": {"src": "a"}}, r"task\.signal=direct: .* has no mark"),
        ({"signal": "ft_static"}, "task: signal=ft_static trains on the forces of frames"),
        ({"alpha_decoder": 8}, "task: unknown keys alpha_decoder"),
        ({"proximal": 1.0}, "task: unknown keys proximal"),
    ],
)
def test_controls_that_cannot_be_meant(task, said):
    with pytest.raises(ValueError, match=said):
        Settings.read(TASK | task)


def test_force_training_alone_needs_frames_only():
    settings = Settings.read(TASK | {"signal": "ft_static", "forces": {"src": "a", "updates": 2}})
    found = for_signal(settings.make_signal(), settings.forces.replay)
    assert found == ForceReplay("a", updates=2, alone=1.0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a.b.C", "d.E"], ("a.b.C", "d.E")),
        ("[a.b.C, d.E]", ("a.b.C", "d.E")),  # as fairchem 1 reads --task.metrics=[a.b.C,d.E]
        ("a.b.C", ("a.b.C",)),
        ([], ()),
        ("[]", ()),
    ],
)
def test_several_names_as_a_list_and_as_the_command_line_has_them(given, found):
    settings = Settings.read(TASK | {"metrics": given, "baselines": given})
    assert settings.metrics == settings.baselines == found


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"src": "x", "updates": -1}, r"task\.forces\.updates=-1: expected at least 0"),
        ({"src": "x", "limit": float("nan")}, r"task\.forces\.limit=nan"),
        ({"src": "x", "alone": 1.5}, r"task\.forces\.alone=1\.5: expected a share of the run"),
        ({"src": "base", "updates": 2}, "have nothing to teach without a signal"),
        ({"src": "x", "batch_size": 0}, r"task\.forces\.batch_size=0: expected at least 1"),
        ({"src": "x", "format": "xyz"}, r"task\.forces\.format='xyz': choose one of ase_db, lmdb"),
        ({"src": "x", "limit": "long"}, r"task\.forces: .*not supported"),
        ({"max_atoms": 100}, r"task\.forces: unknown keys max_atoms; it has .*batch_size"),
        (
            {"updates": 1, "limit": 0.5},
            r"task\.forces\.limit=0\.5, task\.forces\.updates=1, and there are no forces.*FOLDER",
        ),
        ({"batch_size": 0}, r"task\.forces\.batch_size=0: expected at least 1"),
    ],
)
def test_forces_that_cannot_be_meant(section, said):
    with pytest.raises(ValueError, match=said):
        Settings.read(TASK | {"forces": section})


def test_what_is_not_given_is_as_the_shared_config_says():
    shared = Path(__file__).parents[2] / "configs" / "shared" / "finetune_fairchem1.yml"
    stated = Settings.read(TASK | yaml.safe_load(shared.read_text())["task"])
    bare = Settings.read(TASK)
    assert stated.make_signal() == bare.make_signal()
    assert replace(stated, settings={}) == replace(bare, settings={})
