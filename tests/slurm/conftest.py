"""One cluster and one local run, with which those of the cluster are compared."""

import pytest

from tests.fairchem2.conftest import inputs, trained  # noqa: F401 - fixtures
from tests.slurm.cluster import missing, running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with running(tmp_path_factory.mktemp("slurm")) as started:
        yield started
