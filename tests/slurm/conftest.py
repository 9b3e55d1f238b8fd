"""One cluster and one local run, with which those of the cluster are compared."""

from tests.fairchem2.conftest import inputs, trained  # noqa: F401 - fixtures
from tests.slurm.cluster import cluster  # noqa: F401 - a fixture
