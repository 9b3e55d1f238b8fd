"""The documentation names what is there: every key of the shared configs, files that links lead to."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# Built from the keys above them; what they may be given is explained by group, not key by key.
COMPOSED = (
    "defaults",
    "tasks",
    "collate",
    "train_loader",
    "val_loader",
    "test_loader",
    "runner",
    "callbacks",
)
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def leaves(node: object, path: str = "") -> Iterator[str]:
    """Dotted names of the values in a config; an empty mapping is a value."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if not (path == "" and key in COMPOSED) and not key.startswith("_"):
                yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path


@pytest.mark.parametrize(
    ("config", "heading"),
    [
        ("finetune.yaml", "Keys of `finetune.yaml`"),
        ("splits.yaml", "Keys of `finetune.yaml`"),
        ("finetune_fairchem1.yml", "Keys of `finetune_fairchem1.yml`"),
    ],
)
def test_every_key_is_explained(config, heading):
    text = (ROOT / "docs" / "configs.md").read_text()
    section = text.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`\.?([\w.*+]+)`", section))
    last = {name.rpartition(".")[2] for name in named}
    groups = {name.removesuffix(".*") for name in named if name.endswith(".*")}

    def explained(key: str) -> bool:
        if any(key.startswith(f"{group}.") for group in groups):
            return True
        return key in named or key.rpartition(".")[2] in last

    keys = list(leaves(yaml.safe_load((ROOT / "configs" / "shared" / config).read_text())))
    assert len(keys) > 20
    assert [key for key in keys if not explained(key)] == []


def test_the_composed_settings_of_the_signal_are_explained():
    config = yaml.safe_load((ROOT / "configs" / "shared" / "finetune.yaml").read_text())
    text = (ROOT / "docs" / "configs.md").read_text()
    keys = [key for key in config["runner"]["train_eval_unit"]["signal"] if key != "_target_"]
    assert len(keys) > 5 and [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_links_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+)", file.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (file.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    """Paths from the root of the repository, of which only sources and configs are sure to be there."""
    named = re.findall(
        r"\b((?:benchmarks|configs|examples|fairchem_gdeq|tests)/[\w/.]*\.(?:py|ya?ml))\b",
        page.read_text(),
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_half_of_a_merge_is_left(page):
    marks = ("<<<<<<< ", "=======", ">>>>>>> ")
    assert [line for line in page.read_text().splitlines() if line.startswith(marks)] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 130
