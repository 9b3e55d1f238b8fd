"""The base: overrides, a named part of the parameters, and heads that must survive fine-tuning."""

import os
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from fairchem.core.units.mlip_unit import load_predict_unit

from fairchem_gdeq.fairchem2.base import load_base, load_tasks
from fairchem_gdeq.testing.fairchem2 import backbones, small
from fairchem_gdeq.training.gradients import average_over_ranks
from tests.fairchem2.running import fairchem

CONFIG = backbones.BACKBONES["eSEN direct (OC25)"].config
TASKS = [small.task_config("energy", "energy"), small.task_config("forces")]
TRAINED = ["backbone.blocks.1.*", "output_heads.*"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An eSEN-direct checkpoint with energy and force heads, as released for OC25."""
    path = tmp_path_factory.mktemp("base") / "esen.pt"
    small.write_checkpoint(path, CONFIG, TASKS)
    return path


def test_the_base_is_what_plain_fairchem_opens(base, tmp_path):
    """The averaged weights, where they differ from the last raw ones."""
    stored = torch.load(base, weights_only=False)
    for key, value in stored.ema_state_dict.items():
        if value.is_floating_point():
            stored.ema_state_dict[key] = value + 0.1
    torch.save(stored, tmp_path / "base.pt")
    predictor = load_predict_unit(str(tmp_path / "base.pt"), device="cpu")
    theirs = dict(predictor.model.module.named_parameters())
    ours = dict(load_base(str(tmp_path / "base.pt")).named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    name = next(iter(ours))
    assert not torch.equal(ours[name], stored.model_state_dict[name])


def test_overrides(base):
    assert load_base(str(base)).backbone.max_neighbors == 300
    model = load_base(str(base), overrides={"backbone": {"max_neighbors": 40}})
    assert model.backbone.max_neighbors == 40
    assert model.finetune_model_full_config["backbone"]["max_neighbors"] == 40


def test_only_the_named_part_learns(base):
    def learning(**options):
        model = load_base(str(base), **options)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    everything = learning()
    assert learning(train=["*"]) == everything
    part = learning(train=TRAINED)
    assert part == {n for n in everything if n.startswith(("backbone.blocks.1.", "output_heads."))}
    assert 0 < len(part) < len(everything)


def test_what_fairchem_keeps_fixed_cannot_be_named(base):
    with pytest.raises(ValueError, match="charge_embedding"):
        load_base(str(base), train=["backbone.charge_embedding.*"])


def test_a_pattern_that_matches_nothing(base):
    with pytest.raises(ValueError, match=r"'backbone.bloks.\*' matches none.*backbone.blocks.0"):
        load_base(str(base), train=["output_heads.*", "backbone.bloks.*"])


def test_parameters_that_forces_do_not_reach_are_left_out():
    used, unused, frozen = (torch.ones(2, requires_grad=True) for _ in range(3))
    frozen.requires_grad_(False)
    (2 * used).sum().backward()
    assert [p is used for p in average_over_ranks([used, unused, frozen], 3)] == [True]


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """A run of the command as typed, training one block and the heads, with weight decay."""
    folder = tmp_path_factory.mktemp("tuned")
    for split, count, seed in (("train", 4, 0), ("val", 1, 1), ("test", 1, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    code, _, err = fairchem(
        folder,
        folder,
        "--mode",
        "train",
        "epochs=1",
        "forces.src=none",
        "forces.val=null",
        f"base={base}",
        f"train_parameters={TRAINED}",
        "overrides={backbone:{max_neighbors:200}}",
        "runner.train_eval_unit.optimizer_fn.weight_decay=0.1",
    )
    assert code == 0, err[-3000:]
    return folder / "gdeq" / "results" / "best" / "inference_ckpt.pt", err


def test_other_heads_and_unnamed_parameters_come_out_bit_for_bit(base, tuned):
    path, err = tuned
    before, after = (torch.load(p, weights_only=False) for p in (base, path))
    moved = {
        key
        for key, value in before.model_state_dict.items()
        if not torch.equal(value, after.model_state_dict[key])
    }
    assert any(key.startswith("backbone.blocks.1.") for key in moved)
    assert "output_heads.forces.linear.weight" in moved
    assert all(key.startswith(("backbone.blocks.1.", "output_heads.forces.")) for key in moved)
    smooth = {key.removeprefix("module."): v for key, v in after.ema_state_dict.items()}
    for key, value in before.model_state_dict.items():
        if key.startswith("output_heads.energy."):
            assert torch.equal(value, smooth[key])
    assert "energies no longer match the forces" in err and "heads energy" in err
    assert "training" in err
    assert after.tasks_config == before.tasks_config


def test_tasks_of_a_data_set(base):
    assert [task.name for task in load_tasks(str(base), "si")] == ["energy", "forces"]
    with pytest.raises(ValueError, match=r"data sets si, not for 'oc25'.*dataset=NAME"):
        load_tasks(str(base), "oc25")


def test_a_base_that_is_not_there(tmp_path):
    for load in (load_base, lambda *a, **k: load_tasks(*a, "si", **k)):
        with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file.*Get it there\."):
            load(str(tmp_path / "none.pt"), hint="Get it there.")


def test_energies_can_still_be_had_in_plain_fairchem(tuned, tmp_path):
    """In a process that imports nothing of ours."""
    ase.io.write(tmp_path / "start.json", small.silicon(1)[0])
    script = f"""
import ase.io, numpy as np
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
atoms = ase.io.read({str(tmp_path / "start.json")!r})
atoms.calc = FAIRChemCalculator(load_predict_unit({str(tuned[0])!r}, device="cpu"), task_name="si")
np.savez({str(tmp_path / "out.npz")!r}, e=atoms.get_potential_energy(), f=atoms.get_forces())
"""
    quick = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=quick, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = np.load(tmp_path / "out.npz")
    assert np.isfinite(out["e"]) and np.abs(out["f"]).max() > 1e-3
