"""fairchem-core 2: trainer, task, runner and frozen-graph force fields.

Importing it registers the trainer ``gdeq``, the task ``is2rs`` and the datasets ``is2rs``,
``is2rs_lmdb`` and ``is2rs_trajectories``.
"""

from fairchem_gdeq.versions import require_version

require_version(2)  # before anything that another version does not have

from fairchem_gdeq.data.is2rs import IS2RSDataset  # noqa: E402
from fairchem_gdeq.fairchem2.task import IS2RS  # noqa: E402
from fairchem_gdeq.fairchem2.trainer import GDEQTrainer  # noqa: E402

__all__ = ["IS2RS", "GDEQTrainer", "IS2RSDataset"]
