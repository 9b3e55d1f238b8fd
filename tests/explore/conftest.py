"""A small model, starts for it, and the command."""

from functools import partial

import pytest
from ase.db import connect

from fairchem_gdeq.explore.__main__ import main
from fairchem_gdeq.testing.fairchem2 import small

REFERENCE = "tests.explore.reference.Noted"
QUICK = ("--max-steps", "7", "--frames", "4", "--fmax", "0.001", "--device", "cpu")


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    """A folder with ``esen.pt`` and ``starts``: 8, 7, 6, 8 and 7 atoms, of which two are fixed."""
    folder = tmp_path_factory.mktemp("given")
    task = small.task_config("forces")
    task["normalizer"]["rmsd"] = 20.0  # so that structures move
    small.write_checkpoint(folder / "esen.pt", small.MODELS["esen"], [task])
    small.write_is2rs(folder / "starts", small.silicon(5, fixed=(0, 2)))
    return folder


def command(
    given, folder, *words, starts="starts", model="esen.pt", label=("--calculator", REFERENCE)
):
    """Run it; starts and model lie in ``given`` if not elsewhere, and words may repeat options."""
    texts = [given / starts, given / model, folder, *QUICK, *words, *label]
    return main([str(text) for text in texts])


@pytest.fixture
def explore(given):
    return partial(command, given)


def rows_of(folder):
    """Frames of a data set by name."""
    with connect(folder / "data.aselmdb", type="aselmdb", readonly=True) as database:
        return {row.data["sid"]: row.toatoms() for row in database.select()}
