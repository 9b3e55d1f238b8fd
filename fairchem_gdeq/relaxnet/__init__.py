"""RelaxNet: trajectories of relaxations by a neural ODE, from the start alone (fairchem 2).

The network is in ``fairchem_gdeq.models.relaxnet``. Needs the extra ``relaxnet``. Importing it registers
the trainer ``relaxnet`` and the data set ``relaxation_frames``.
"""

from fairchem_gdeq.versions import require_version

require_version(2)

from fairchem_gdeq.relaxnet.dynamics import Evolution, Path  # noqa: E402
from fairchem_gdeq.relaxnet.frames import FramesDataset  # noqa: E402
from fairchem_gdeq.relaxnet.loss import RelaxNetLoss  # noqa: E402
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS  # noqa: E402
from fairchem_gdeq.relaxnet.trainer import RelaxNetTrainer  # noqa: E402

__all__ = [
    "Evolution",
    "FramesDataset",
    "Path",
    "RelaxNetIS2RS",
    "RelaxNetLoss",
    "RelaxNetTrainer",
]
