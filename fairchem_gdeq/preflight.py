"""What a run needs and this machine lacks, said in one line before anything is loaded."""

from __future__ import annotations

from glob import glob
from pathlib import Path

import torch
from omegaconf import DictConfig

LOADERS = ("train_dataloader", "eval_dataloader", "test_dataloader")


def missing(config: DictConfig) -> str | None:
    """The first file or device that the config names and that is not there; None if all are.

    Args:
        config: of a run of ``GDEQRunner``, as Hydra composed it.
    """
    runner = config.runner
    here = f"(working folder {Path.cwd()})"
    for loader in LOADERS:
        for each in runner[loader].dataset.dataset_configs.values():
            for split in each.splits.values():
                for source in [split.src] if isinstance(split.src, str) else split.src:
                    if not glob(source):
                        return f"data set {source}: no such file or folder {here}. {each.obtain}"
    base = runner.train_eval_unit.model
    if "path" in base and not Path(base.path).is_file():
        return f"base potential {base.path}: no such file {here}. {base.get('obtain', '')}"
    if config.job.device_type == "CUDA" and not torch.cuda.is_available():
        return "job.device_type is CUDA, and PyTorch finds no GPU: add job.device_type=CPU"
    return None
