"""Errors of ours end a process in a sentence, wherever they were raised."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.one_line import SHOW, sentence

ROOT = Path(__file__).parents[2]
FAIRCHEM = Path(sys.executable).with_name("fairchem")
OURS = {"_target_": "fairchem_gdeq.relax.Relaxer", "fmax": -1}


def raised(config):
    with pytest.raises(InstantiationException) as caught:
        instantiate(OmegaConf.create(config))
    return caught.value


def test_ours_is_found_inside_hydras():
    nested = {"_target_": "builtins.dict", "relaxer": OURS}
    assert sentence(raised(nested)) == "fmax=-1: expected a number >= 0"


def test_what_is_not_ours_keeps_its_traceback():
    assert sentence(raised({"_target_": "builtins.int", "_args_": ["x"]})) is None
    assert sentence(ValueError("from nowhere")) is None


@pytest.mark.parametrize(
    ("ranks", "shown"),
    [
        (1, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, False), (1, True))),
    ],
)
def test_a_command_ends_in_the_sentence(tmp_path, ranks, shown):
    """A base that knows its data by another name, which nothing finds before it is opened."""
    small.checkpoint(tmp_path / "base.pt")
    for split in ("train", "val", "test"):
        small.write_is2rs(tmp_path / split, small.silicon(2))
    typed = [FAIRCHEM, "-c", ROOT / "configs/own/gdeq.yml", "--mode", "train", f"data={tmp_path}"]
    typed += [f"base={tmp_path / 'base.pt'}", "dataset=another", f"job.run_dir={tmp_path / 'runs'}"]
    typed += [f"job.scheduler.ranks_per_node={ranks}", "max_atoms=8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({SHOW: "1"} if shown else {})
    done = subprocess.run(
        typed, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1].removeprefix("[rank0]: ")  # torch's
    assert last.startswith("fairchem: base potential") and "not for 'another'" in last
    assert ("Traceback" in done.stderr) == (shown or ranks > 1)
