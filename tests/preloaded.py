"""What the server of ``tests/commands.py`` has done before its first fork: nothing of it is ours."""

import ase.db
import ase.optimize  # noqa: F401
import fairchem.core._cli
import fairchem.core.components.train.train_runner
import fairchem.core.launchers.slurm_launch
import fairchem.core.models.uma.escn_md  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import numpy as np
import rich.progress
import rich.table  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401
from fairchem.core.datasets.samplers.max_atom_distributed_sampler import get_batches

get_batches(np.array([8, 7]), np.arange(2), 16, 0)  # numba compiles it, for more than a second
