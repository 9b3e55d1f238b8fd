"""What a run needs and this machine lacks, said in one line before anything is loaded."""

from __future__ import annotations

from glob import glob
from pathlib import Path

import torch
from omegaconf import DictConfig

LOADERS = ("train_dataloader", "eval_dataloader", "test_dataloader")


def no_base(path: str, hint: str) -> str | None:
    """What to say where there is no base potential at ``path``; None where there is."""
    if Path(path).is_file():
        return None
    return f"base potential {path}: no such file (working folder {Path.cwd()}). {hint}"


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
                        return f"data set {source}: no such file or folder {here}. {each.hint}"
    base = runner.train_eval_unit.model
    if "path" in base and (text := no_base(base.path, base.get("hint", ""))):
        return text
    if config.job.device_type == "CUDA" and not torch.cuda.is_available():
        return "job.device_type is CUDA, and PyTorch finds no GPU: add job.device_type=CPU"
    return None
