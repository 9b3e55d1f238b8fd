"""fairchem-core 1.10: trainer, tasks and frozen-graph force fields."""

from fairchem_gdeq.fairchem1.version import require_version

require_version()
