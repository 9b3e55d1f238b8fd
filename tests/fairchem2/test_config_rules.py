"""Numbers and words that a config cannot mean: each is one sentence with its key."""

import copy
import math
import re
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fairchem.core._cli import ALLOWED_TOP_LEVEL_KEYS, get_canonical_config
from fairchem.core.launchers.api import JobConfig
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from benchmarks.study.tables import read_tables
from fairchem_gdeq.training.config_rules import RULES, broken_rules
from hydra_plugins.fairchem_gdeq import check
from tests import commands

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob("*/*.yml")
    if "/shared/finetune@" in path.read_text() or "@_global_" in path.read_text()
)


def is_ours(name):
    """Whether our command checks a config: others are of fairchem's own runner."""
    return str(composed(name).runner._target_).startswith("fairchem_gdeq.")


@cache
def composed(name, overrides=()):
    with initialize_config_dir(str(CONFIGS / Path(name).parent), version_base="1.1"):
        return compose(Path(name).name, overrides=list(overrides))


@pytest.fixture(scope="module")
def config():
    return composed("si/gdeq.yml")


@pytest.mark.parametrize("name", FILES)
def test_every_config_of_ours_keeps_the_rules(name):
    assert list(broken_rules(composed(name))) == []


@pytest.mark.slow  # seconds for each, which is why commands of other tests do not (tests/preloaded.py)
@pytest.mark.parametrize("name", FILES)
def test_fairchem_finds_no_key_that_nothing_uses(name):
    assert set(get_canonical_config(as_a_command_has_it(name))) <= ALLOWED_TOP_LEVEL_KEYS


def test_fairchem_finds_a_key_that_nothing_uses():
    config = as_a_command_has_it("si/gdeq.yml")
    OmegaConf.set_struct(config, False)
    config.nobody_s = 1
    with pytest.raises(ValueError, match=r"unused keys .*'nobody_s'"):
        get_canonical_config(config)


THREE = [f"paths.{split}=data/si/{split}" for split in ("train", "val", "test")]


@pytest.mark.parametrize("given", [[], ["data=elsewhere"]])
@pytest.mark.parametrize("name", ["own/gdeq.yml", "si/gdeq.yml", "oc25/gdeq_ti.yml"])
def test_splits_that_are_all_named_need_no_folder(name, given, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    own = [*THREE, *given, "base=data/si/base/esen.pt", "dataset=si"]
    own += ["forces={src:none,val:null}", "job.device_type=CPU"]
    config = composed(name, tuple(own)).copy()
    check(config)
    assert "data" not in config
    assert set(get_canonical_config(with_job(config))) <= ALLOWED_TOP_LEVEL_KEYS


def test_a_folder_that_is_read_stays(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = composed("si/gdeq.yml", tuple(THREE[:2])).copy()
    check(config)
    assert config.data == "data/si" and get_canonical_config(with_job(config))


def as_a_command_has_it(name):
    """With what only a user knows."""
    config = composed(name)
    own = {key: "given" for key in config if OmegaConf.is_missing(config, key)}
    return with_job(OmegaConf.merge(config, own))


def with_job(config):
    """With fairchem's own keys of a job."""
    return OmegaConf.merge({"job": OmegaConf.structured(JobConfig)}, config)


def test_every_rule_is_of_a_key(config):
    nowhere = object()
    assert [k for k in RULES if OmegaConf.select(config, k, default=nowhere) is nowhere] == []


def said(config, *overrides):
    """What the rules say of the config with overrides, as the command line reads them."""
    changed = config.copy()
    for parsed in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(changed, parsed.key_or_group, parsed.value(), force_add=True)
    return list(broken_rules(changed))


# ---- every key there is ---------------------------------------------------------------------------

SENSELESS = {"null": None, "nan": math.nan, "-1": -1, "abc": "abc", "[]": [], "{}": {}}
FAIRCHEMS = "tasks.[01].*"  # of RelaxNet: what fairchem's own Task is made of, which no user sets
ACCEPTED = {  # what passes for which keys, and why
    "null": (
        "says that there is none of it, or that it has its default",
        *("audit.frames", "audit.second", "checkpoint", "ema_decay", "forces.*", "guidance_memory"),
        *("job.scheduler.slurm.account", "job.scheduler.slurm.additional_parameters"),
        *("job.scheduler.slurm.partition", "job.scheduler.slurm.qos", "overrides", "reference"),
        *("train_parameters", "test_target_key", "paths.val_frames"),
        *("runner.train_eval_unit.clip_grad_norm", "runner.train_eval_unit.is2rs.cap"),
    ),
    "abc": (
        "is a word or a path: what has that name is asked where it is opened or made, in a sentence",
        *("audit.frames", "audit.second", "base", "checkpoint", "data", "dataset", "forces.src"),
        *("forces.val", "format", "loss", "paths.*", "reference", "signal", "split", "test"),
        *("test_target_key", "base_hint", "data_hint", "relaxer.solver"),
        *("job.run_dir", "job.run_name", "job.timestamp_id", "job.scheduler.slurm.account"),
        *("job.scheduler.slurm.partition", "job.scheduler.slurm.qos"),
        "train_loader.dataset.dataset_configs.trajectories.format",
    ),
    "[]": ("says that there are none", "baselines", "metrics"),
    "{}": ("says that nothing is added", "job.scheduler.slurm.additional_parameters", "overrides"),
    "nan": ("is nothing that a key could mean",),
    "-1": ("is nothing that a key could mean",),
}


def places(stored):
    """Where a plain config holds no further keys: each with its dotted key, and what holds it."""
    pairs = enumerate(stored) if isinstance(stored, list) else stored.items()
    for name, value in pairs:
        deeper = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
        if any(isinstance(each, dict) and each for each in deeper):
            for key, *place in places(value):
                yield f"{name}.{key}", *place
        else:
            yield str(name), stored, name


def names_of(key, value):
    """A key, and the one that a user sets for it where it refers to that."""
    found = re.fullmatch(r"\$\{([\w.]+)\}", str(value))
    return {key, found[1]} if found else {key}


@pytest.mark.parametrize("name", filter(is_ours, FILES))
@pytest.mark.parametrize("shown", SENSELESS)
def test_a_senseless_value_of_any_key_is_named_or_known_to_pass(name, shown):
    """All keys have it at once, as no rule of a key looks at another: one without a rule is found."""
    stored = OmegaConf.to_container(composed(name))
    found = {key: place for key, *place in places(stored) if key != "runner._target_"}
    names = {key: names_of(key, holder[last]) for key, (holder, last) in found.items()}
    for holder, last in found.values():
        holder[last] = copy.deepcopy(SENSELESS[shown])
    lines = [line for line in broken_rules(OmegaConf.create(stored)) if ": expected " in line]
    named = {line.partition("=")[0] for line in lines}
    _, *passing = ACCEPTED[shown]
    known = {k for k in found if any(fnmatchcase(n, p) for p in passing for n in names[k])}
    tasks = {k for k in found if fnmatchcase(k, FAIRCHEMS)}
    assert found.keys() - named - tasks == known - tasks


UNIT = "runner.train_eval_unit"
WORDS = ("abc", "'1e-3 '", "[1]", "{a: 1}")
NOT_WHOLE = ("1.5", "true", *WORDS)
NOT_FINITE = ("nan", "inf", "-inf", "true", *WORDS)
BAD = {
    "epochs": (*NOT_WHOLE, "0", "-1", "null"),
    "lr": (*NOT_FINITE, "0", "-0.5", "null"),
    "alpha": (*NOT_FINITE, "0", "-0.05", "null"),
    "horizon": (*NOT_WHOLE, "-1", "null"),
    "ema_decay": (*NOT_FINITE, "1.0", "-0.1", "2"),
    "max_atoms": (*NOT_WHOLE, "1", "0", "-5"),
    "most_diverged": ("-0.1", "1.1", "nan", "abc"),
    "num_workers": ("-1", "1.5", "abc"),
    "eval_max_atoms": ("1", "0.5", "abc"),
    "train_structures": ("0", "-0.5", "1.5", "64", "nan", "abc", "null"),
    "val_structures": ("0", "1.01"),
    "test_structures": ("0", "1.01"),
    "alpha_lr": ("-0.5", "nan", "abc"),
    "alpha_decoder": (*NOT_WHOLE, "-1", "null"),
    "proximal": ("-0.1", "nan", "inf", "abc", "null"),
    "momentum": ("-0.1", "1.0", "1.5", "nan", "abc", "null"),
    "annealing": ("0", "-0.5", "1.01", "nan", "abc", "null"),
    "max_unroll": ("0", "-3", "7.5"),
    "spare": ("-0.1", "nan", "abc"),
    "checkpoint_minutes": ("-1", "nan", "soon"),
    "keep": ("best", "null", "1"),
    "warm_start": ("perhaps", "1", "null"),
    "compile": ("2", "inductor"),
    "trust_files": ("no_idea", "0"),
    "forces.max_atoms": ("1", "2.5", "abc"),
    "forces.lambda_forces": ("-1", "nan", "inf", "abc"),
    "forces.limit": ("-1", "nan", "-inf", "abc"),
    "forces.updates": ("-1", "1.5", "abc"),
    "forces.alone": ("-0.1", "1.1", "nan", "abc"),
    "diagnose.structures": ("0", "1.5", "all"),
    "diagnose.starts": ("-1", "many"),
    "diagnose.shift": ("-0.1", "nan"),
    "audit.structures": ("0", "1.5", "all"),
    "audit.nve.runs": ("-1", "1.5"),
    "audit.nve.steps": ("0", "many"),
    "audit.nve.fs": ("0", "-1", "nan"),
    "relaxer.fmax": ("0", "-0.02", "nan", "abc"),
    "relaxer.max_steps": ("-1", "1.5", "abc"),
    "job.seed": ("-1", "1.5", "abc"),
    "job.scheduler.ranks_per_node": ("0", "1.5"),
    "job.scheduler.slurm.timeout_hr": ("0", "0.5", "1:00"),
    f"{UNIT}.clip_grad_norm": ("0", "-1", "nan"),
    f"{UNIT}.is2rs.cap": ("0", "-0.1", "nan"),
    f"{UNIT}.is2rs.basin.delta_q": ("0", "-2", "abc"),
    f"{UNIT}.is2rs.basin.displacement": ("0", "-2"),
    f"{UNIT}.signal.adjoint.tol": ("0", "1", "-1", "nan"),
    f"{UNIT}.signal.adjoint.max_vjps": ("0", "2.5"),
    f"{UNIT}.signal.adjoint.damping": ("-0.1", "nan"),
    f"{UNIT}.signal.lambda_eq": ("-1", "nan"),
}
CASES = [f"{key}={value}" for key, values in BAD.items() for value in values]


@pytest.mark.parametrize("override", CASES)
def test_what_cannot_be_meant_is_named(config, override):
    key, _, value = override.partition("=")
    lines = [line for line in said(config, override) if line.startswith(f"{key}=")]
    assert len(lines) == 1 and ": expected " in lines[0]
    if value not in WORDS:
        assert value.lower().rstrip("0") in lines[0].lower().replace(": expected", "")


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["signal=ft_static"], []),
        (["signal=ft_static", "forces.src=none"], ["forces.src=none: expected a folder of frames"]),
        (["signal=ft_static", "forces.src=null"], ["forces.src=null: expected a folder of frames"]),
        (["signal=ft_static", "forces.src=base"], ["forces.src=base: expected a folder of frames"]),
        (["signal=direct", "forces.src=none", "forces.val=null"], []),
        (["signal=direct", "forces.src=null", "forces.val=null"], []),
        (
            ["signal=direct", "forces.src=base", "forces.val=null"],
            ["forces.src=base: expected none"],
        ),
        (["alpha_decoder=8", "alpha_lr=0.001"], []),
        (
            ["alpha_decoder=8", "alpha_lr=0.001", "signal=implicit"],
            ["alpha_decoder=8: expected 0 for signal=implicit"],
        ),
        (["alpha_decoder=8"], ["alpha_lr=0: expected a number above 0 for alpha_decoder"]),
        (
            ["signal=direct"],
            [
                "forces.src=data/si/train_frames: expected none for signal=direct",
                "forces.val=data/si/val_frames: expected null for signal=direct",
            ],
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(config, overrides, lines):
    found = said(config, *overrides)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_there_are_many_of_them():
    assert len(CASES) >= 120


@pytest.mark.parametrize("table", read_tables().values(), ids=lambda table: table.name)
def test_the_runs_of_the_study_keep_the_rules(table):
    """Whatever they switch off or take to an extreme."""
    if table.fairchem == 1:
        pytest.skip("of the other line")
    config = composed(table.config)
    for given in {run.overrides for run in table.runs()}:
        chosen = [each for each in given if not each.startswith("preset=")]
        if any("lion_pytorch" in each for each in chosen) and find_spec("lion_pytorch") is None:
            (line,) = said(config, *chosen)
            assert "'lion_pytorch.Lion', where nothing is. Mend the name, or install" in line
        else:
            assert said(config, *chosen) == [], given


def test_what_refers_to_other_keys_is_not_refused(config):
    """Lists of references; one that leads nowhere is said by ``unresolved``, once."""
    config = copy.deepcopy(config)
    OmegaConf.update(config, "data", "???")
    OmegaConf.update(config, "tasks", ["${energy}", "${forces_task}"], merge=False)
    assert said(config) == []
    assert said(config, "baselines=[${nothing}]") == []


@pytest.mark.parametrize("key", ["ranks_per_node", "slurm.mem_gb", "slurm.cpus_per_task"])
def test_numbers_of_a_job_may_come_from_the_environment(config, key, monkeypatch):
    monkeypatch.setenv("MUCH", "80")
    found = OmegaConf.merge(config, {})
    OmegaConf.update(found, f"job.scheduler.{key}", "${oc.env:MUCH}", force_add=True)
    assert said(found) == []
    monkeypatch.setenv("MUCH", "much")
    assert said(found) == [f"job.scheduler.{key}=much: expected a whole number from 1 on"]


def test_what_can_be_meant_passes(config):
    for override in (
        *("lr=1", "horizon=0", "alpha=0.2", "ema_decay=null", "ema_decay=0", "spare=0"),
        *("forces.alone=0", "forces.updates=0", "forces.limit=null", "train_structures=1"),
        *(f"{UNIT}.clip_grad_norm=null", f"{UNIT}.is2rs.cap=null", "checkpoint_minutes=0"),
    ):
        assert said(config, override) == []


def test_the_command_ends_with_one_sentence_for_each(tmp_path):
    """Before anything is loaded, and with nothing written."""
    options = ("lr=abc", "epochs=1.5", f"job.run_dir={tmp_path / 'runs'}")
    done = commands.fairchem("-c", CONFIGS / "si/gdeq.yml", "--mode", "train", *options)
    assert done.returncode != 0 and not (tmp_path / "runs").exists()
    assert done.stderr.strip().splitlines()[-2:] == [
        "fairchem: epochs=1.5: expected a whole number from 1 on",
        "fairchem: lr=abc: expected a number above 0",
    ]
    options = ("job.scheduler.mode=SLURM", f"job.run_dir={tmp_path / 'runs'}")
    done = commands.fairchem(
        *("-c", CONFIGS / "si/gdeq.yml", "--mode", "train", *options), env={"PATH": str(tmp_path)}
    )
    assert done.returncode != 0 and "there is no sbatch here" in done.stderr.splitlines()[-1]
    (tmp_path / "file").touch()
    options = (f"job.run_dir={tmp_path / 'file' / 'runs'}",)
    done = commands.fairchem("-c", CONFIGS / "si/gdeq.yml", "--mode", "train", *options)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(
        "is a file. Choose another with job.run_dir=FOLDER"
    )


class NeedsAGPU(torch.optim.SGD):
    """Of which only the machine that trains can say whether it is right."""

    def __init__(self, params, lr, weight_decay=0.0):
        raise RuntimeError("no GPU")


def test_an_optimizer_that_cannot_be_made_here_is_left_to_the_machine_that_trains(config):
    assert said(config, f"{UNIT}.optimizer_fn._target_={__name__}.NeedsAGPU") == []
