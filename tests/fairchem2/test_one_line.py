"""Errors of ours end a process in a sentence, wherever they were raised."""

import linecache
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ErrorHandler,
    ProcessFailure,
)

from fairchem_gdeq.audit.sharing import Unmeasured
from fairchem_gdeq.data.lmdb_file import DamagedFile
from fairchem_gdeq.data.rows import BadRow
from fairchem_gdeq.relax.settings import require_not_negative
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.training.checkpoint_files import UntrustedFile
from fairchem_gdeq.training.failing import TooManyDiverged
from fairchem_gdeq.training.one_line import HERE, SHOW, sentence
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


def test_an_option_that_a_target_does_not_have_is_named(of_a_rank):
    error = raised({"_target_": "builtins.dict", "relaxer": OURS | {"fmax": 1, "foo": 1}})
    expected = "relaxer.foo: expected an option of fairchem_gdeq.relax.settings.Relaxer"
    assert sentence(error).startswith(expected) and sentence(of_a_rank(error)).startswith(expected)


def test_a_mistake_in_our_code_keeps_its_traceback():
    with pytest.raises(TypeError) as caught:
        require_not_negative(fmax=None)  # Python compares, and no `raise` of ours says so
    assert sentence(caught.value) is None


@pytest.fixture
def of_a_rank(tmp_path, monkeypatch):
    """What torch makes of an error in a rank: it writes a file there, and reads it where all end."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def made(error):
        try:
            raise error
        except type(error) as caught:
            ErrorHandler().record_exception(caught)
        return ChildFailedError("fairchem", {0: ProcessFailure(0, 1, 1, str(file))})

    return made


class Added(ArithmeticError):
    """An exception of ours as one may be added, whose name has no usual end."""

    __module__ = "fairchem_gdeq.added"


def raised_by_us(error):
    """The error, raised by a line that is in a file of the package."""
    name = f"{HERE}/somewhere.py"
    linecache.cache[name] = (0, None, ["raise error\n"], name)
    with pytest.raises(type(error)) as caught:
        exec(compile("raise error\n", name, "exec"), {"error": error})
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        Added("of many words"),
        BadRow("data.aselmdb, row 3", "no atoms"),
        DamagedFile("data.aselmdb: is cut short"),
        TooManyDiverged("3 of 4 structures diverged"),
        UntrustedFile("base.pt names os.system\nand another line"),
        Unmeasured("KeyError: 'cell'"),
        FileNotFoundError("base.pt: no such file"),
        ImportError("no lmdb: install it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_of_ours_is_said_by_one_rank_and_by_several(of_a_rank, error):
    found = raised_by_us(error)
    assert sentence(found) == sentence(of_a_rank(found)) == str(error)


@pytest.mark.parametrize("error", [KeyError("cell"), AttributeError("no cell"), StopIteration()])
def test_what_says_nothing_keeps_its_traceback_in_a_rank_too(of_a_rank, error):
    found = raised_by_us(error)
    assert sentence(found) is sentence(of_a_rank(found)) is None


def test_a_rank_s_error_is_found_with_and_without_hydra(of_a_rank):
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
