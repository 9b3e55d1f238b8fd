"""Errors of ours end a process in a sentence, wherever they were raised."""

import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.one_line import SHOW, sentence
from fairchem_gdeq.training.same_run import KEPT, require_same_run

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


def test_a_mistake_in_our_code_keeps_its_traceback():
    with pytest.raises(TypeError) as caught:
        require_not_negative(fmax=None)  # Python compares, and no `raise` of ours says so
    assert sentence(caught.value) is None


def of_a_rank(error):
    """What torch makes of an error in a rank."""
    stack = "".join(traceback.format_exception(error))
    message = {"message": f"{type(error).__name__}: {error}", "extraInfo": {"py_callstack": stack}}
    failure = SimpleNamespace(message=message, timestamp=0)
    found = ChildFailedError.__new__(ChildFailedError)
    found.failures = {0: failure}
    return found


def test_a_rank_s_error_is_found_with_and_without_hydra():
    with pytest.raises(ValueError, match="other settings") as caught:
        raise_ours()
    assert sentence(of_a_rank(caught.value)) == str(caught.value)
    nested = raised({"_target_": "builtins.dict", "relaxer": OURS})
    assert sentence(of_a_rank(nested)) == "fmax=-1: expected a number >= 0"
    for other in (raised({"_target_": "builtins.int", "_args_": ["x"]}), KeyError("foo")):
        assert sentence(of_a_rank(other)) is None


def raise_ours():
    """An error of several lines, raised where nothing instantiates."""
    require_same_run('{"a": 2, "b": 3}', refusing())


def refusing():
    """A folder of another run."""
    folder = Path(tempfile.mkdtemp())
    (folder / "step").mkdir()
    (folder / "step" / ".metadata").touch()
    (folder / KEPT).write_text('{"a": 1, "b": 2}')
    return folder


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
