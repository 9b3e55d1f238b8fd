"""A part that says nothing is what the shared configs say: one set of defaults, in the classes."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.relax import GDEQ, SIGNALS, Descent, Relaxer, make_signal

SHARED = Path(__file__).parents[1] / "configs" / "shared"
BUILT_IN = ("gdeq", "bptt", "truncated_bptt", "implicit", "coupled", "direct", "ft_static")


def fairchem2():
    """The shared config, of which the parts below are read alone."""
    own = OmegaConf.load(SHARED / "finetune.yaml")
    del own["defaults"]
    return OmegaConf.merge(OmegaConf.load(SHARED / "splits.yaml"), own)


def test_signals_of_fairchem_2():
    config = fairchem2()
    for name in BUILT_IN:
        config.signal = name
        assert instantiate(config.runner.train_eval_unit.signal) == SIGNALS[name]()


def test_how_structures_are_relaxed_in_fairchem_2():
    """The config's relaxer begins with K plain steps; one by itself has none."""
    config = fairchem2()
    config.relaxer.horizon = 0
    assert instantiate(config.relaxer) == Relaxer()
    stated = OmegaConf.to_container(config.runner.train_eval_unit.is2rs, resolve=True)
    ours = RelaxationTask()
    assert (stated["alpha"], stated["cap"]) == (ours.alpha, ours.cap)
    assert instantiate(stated["descent"]) == ours.descent
    assert instantiate(stated["basin"]) == ours.basin == Basin()


def test_settings_of_fairchem_1():
    task = yaml.safe_load((SHARED / "finetune_fairchem1.yml").read_text())["task"]
    for name in BUILT_IN:
        assert make_signal(name, **task["settings"]) == SIGNALS[name]()
    assert task["horizon"] == GDEQ().horizon
    assert Relaxer(**task["relaxer"]) == Relaxer() and Basin(**task["basin"]) == Basin()
    # alpha alone is another one: its configs are of catalysts, with stiffer bonds than silicon.
    assert task["cap"] == RelaxationTask().cap
    assert Descent(task["momentum"], task["annealing"]) == RelaxationTask().descent


def test_finetune_from_python():
    api = pytest.importorskip("fairchem_gdeq.api", reason="fairchem 2's interface")
    config = fairchem2()
    unit = config.runner.train_eval_unit
    stated = {
        "weight_decay": unit.optimizer_fn.weight_decay,
        "clip": unit.clip_grad_norm,
        "ema_decay": unit.ema_decay,
        "warm_start": unit.warm_start,
        "keep": unit.keep,
        "seed": config.job.seed,
    }
    known = inspect.signature(api.finetune).parameters
    assert {key: known[key].default for key in stated} == stated
    potential = {each.name: each for each in fields(api.Potential)}["task"]
    made = potential.default_factory()
    assert (made.alpha, made.cap, made.relaxer) == (config.alpha, 0.1, Relaxer())
