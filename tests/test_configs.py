"""What the shipped configs of both fairchem lines say, read without running them."""

from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("gdeq*.yml") if p.parent.name != "shared")


def parents(path: Path, own: dict) -> list[Path]:
    """The files that a config builds on: fairchem 1's includes, Hydra's defaults."""
    found = [path.parent / name for name in own.pop("includes", [])]
    named = own.pop("defaults", [])
    pairs = [pair for each in named if isinstance(each, dict) for pair in each.items()]
    groups = [f"{group.removeprefix('override ')}/{name}" for group, name in pairs if name]
    names = [each.partition("@")[0] for each in named if isinstance(each, str)]
    names = [name for name in [*names, *groups] if name != "_self_"]
    return found + [CONFIGS / f"{name.strip('/')}.yaml" for name in names]


def merged(path: Path) -> dict:
    """A config with what it builds on: sections one by one, later ones win."""
    own = yaml.safe_load(path.read_text())
    out: dict = {}
    for each in [*map(merged, parents(path, own)), own]:
        for key, value in each.items():
            out[key] = out.get(key, {}) | value if isinstance(value, dict) else value
    return out


def baseline(path: Path) -> tuple[float, int]:
    """alpha and the steps of the full unroll."""
    config = merged(path)
    if "task" in config:
        return config["task"]["alpha"], config["task"]["settings"]["max_unroll"]
    signal = config["runner"]["train_eval_unit"]["signal"]
    assert signal["max_unroll"] == "${max_unroll}"
    return config["alpha"], config["max_unroll"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_full_unroll_is_long_enough_where_the_step_is_small(path):
    """BPTT's rollouts come equally far on all of them: 2 Angstrom for each eV/Angstrom at least."""
    alpha, steps = baseline(path)
    assert alpha * steps >= 2.0, f"{path}: {steps} steps of {alpha} are no fair baseline"
