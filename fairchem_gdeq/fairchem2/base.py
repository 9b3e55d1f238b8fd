"""The base potential that is fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import load_inference_model
from omegaconf import DictConfig, OmegaConf
from torch import nn


def load_base(
    path: str,
    overrides: Mapping[str, Any] | None = None,
    train: Sequence[str] | None = None,
) -> HydraModel:
    """A fairchem 2 inference checkpoint, by fairchem's own loader, ready to be fine-tuned.

    Its averaged (EMA) weights: what ``load_predict_unit`` opens and its scores were measured with.
    fairchem's ``initialize_finetuning_model`` would start from the last raw ones.

    Args:
        path: an ``inference_ckpt.pt``.
        overrides: changes of the model's config, nested as it is:
            ``{"backbone": {"always_use_pbc": False}}``.
        train: shell-style patterns of the names of the parameters to train, such as
            ``["backbone.blocks.3.*", "output_heads.forces.*"]``; the others keep their values.
            None trains all that the forces depend on.

    Raises:
        FileNotFoundError: names the file and what to do.
        ValueError: a pattern of ``train`` matches no parameter that can learn.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"base potential {path}: no such file (working folder {Path.cwd()}). Name a fairchem 2 "
            "inference checkpoint (inference_ckpt.pt) with base=PATH; the silicon configs expect to "
            "be started in the folder of the repository."
        )
    if isinstance(overrides, DictConfig):
        overrides = OmegaConf.to_container(overrides, resolve=True)
    averaged, checkpoint = load_inference_model(path, overrides=overrides, use_ema=True)
    model = averaged.module
    model.finetune_model_full_config = checkpoint.model_config  # what the exported one is built of
    if train is not None:
        train_only(model, train)
    return model


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let exactly the parameters learn whose names match one of the patterns.

    What fairchem itself keeps fixed, such as embeddings with ``cs_emb_grad: false``, stays fixed.

    Raises:
        ValueError: a pattern matches none that learns; says which names there are.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            groups = sorted({".".join(name.split(".")[:3]) + "*" for name in names})
            raise ValueError(
                f"train: the pattern {pattern!r} matches none of the parameters that can learn. There "
                "are " + ", ".join(groups)
            )
        chosen |= matched
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    logging.info(f"training {len(chosen)} parameters, {count} of {total} numbers")


def warn_of_other_heads(model: HydraModel, task: Task) -> None:
    """Say in the log what fine-tuning the forces does to heads that predict anything else."""
    others = sorted(name for name in model.output_heads if name != task.name)
    if others:
        logging.warning(
            f"only forces are fine-tuned (task {task.name}). The heads {', '.join(others)} stay in "
            "the exported model; what only they use keeps its values, and they run on features "
            "that change under them: their energies no longer match the forces. List their tasks "
            "in the config to have them in the exported checkpoint."
        )
