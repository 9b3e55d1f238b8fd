"""What the server of ``tests/commands.py`` has done before its first fork: nothing of it is ours."""

import gc
from importlib import import_module

import numpy as np
from omegaconf import DictConfig, OmegaConf

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

# To find keys that nothing uses, fairchem resolves a config once for each of its sixty keys, for
# seconds. tests/fairchem2/test_config_rules.py has it do so.
cli = import_module("fairchem.core._cli")


def _resolved(config: DictConfig) -> DictConfig:
    """The rest of ``get_canonical_config``."""
    job = OmegaConf.to_object(config.job)
    job.__post_init__()
    config.job = job
    OmegaConf.resolve(config)
    return OmegaConf.create(
        {key: config[key] for key in config if key in cli.ALLOWED_TOP_LEVEL_KEYS}
    )


cli.get_canonical_config = _resolved

gc.freeze()  # a fork needs not look, again and again, for garbage in all that was imported
