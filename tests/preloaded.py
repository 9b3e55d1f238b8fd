"""What the server of ``tests/commands.py`` has done before its first fork: nothing of it is ours."""

from importlib import import_module

import numpy as np

for name in (
    "ase.db",
    "ase.optimize",
    "fairchem.core._cli",
    "fairchem.core.components.train.train_runner",
    "fairchem.core.launchers.slurm_launch",
    "fairchem.core.models.uma.escn_md",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "mendeleev.models",
    "plotly.graph_objects",
    "rich.progress",
    "rich.table",
    "scipy.stats",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchtnt.framework.train",
):
    import_module(name)

# numba compiles this, for more than a second.
samplers = import_module("fairchem.core.datasets.samplers.max_atom_distributed_sampler")
samplers.get_batches(np.array([8, 7]), np.arange(2), 16, 0)

# Every command asks a process of its own which packages there are, for two seconds: the same each time.
machine = import_module("fairchem.core.common.environment")
found = machine._collect_system_environment()
machine._collect_system_environment = lambda: found
