"""fairchem-core 1.10: trainer, tasks and frozen-graph force fields.

A config names the trainer by its path, ``trainer: fairchem_gdeq.fairchem1.GDEQTrainer``, which
fairchem 1 imports; that registers the trainer ``gdeq``, the tasks of fairchem's four modes and the
datasets ``is2rs``, ``is2rs_lmdb`` and ``is2rs_trajectories``.
"""

from fairchem_gdeq.versions import require_version

require_version(1)  # before anything that another version does not have

from fairchem_gdeq.data.is2rs import IS2RSDataset  # noqa: E402
from fairchem_gdeq.fairchem1.tasks import (  # noqa: E402
    Predict,
    RunRelaxations,
    Train,
    Validate,
)
from fairchem_gdeq.fairchem1.trainer import GDEQTrainer  # noqa: E402

__all__ = ["GDEQTrainer", "IS2RSDataset", "Predict", "RunRelaxations", "Train", "Validate"]
