"""The base potential that is fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import load_inference_model
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fairchem_gdeq.fairchem2.conservative import is_conservative
from fairchem_gdeq.training.checkpoint_files import open_checkpoint, require_model_parts
from fairchem_gdeq.training.preflight import no_base

LONGEST = 300  # characters of an error of others in ours


def load_base(
    path: str,
    overrides: Mapping[str, Any] | None = None,
    train: Sequence[str] | None = None,
    hint: str = "",
    trust_files: bool = False,
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
        hint: what to tell somebody who does not have the file.
        trust_files: as ``open_inference``.

    Raises:
        FileNotFoundError: names the file and what to do.
        ValueError: as ``open_potential``, or a pattern of ``train`` matches no parameter that can
            learn.
    """
    require_file(path, hint)
    checkpoint = open_potential(path, trust_files)
    if isinstance(overrides, DictConfig):
        overrides = cast("dict[str, Any]", OmegaConf.to_container(overrides, resolve=True))
    model = build_model(path, checkpoint, overrides)
    model.finetune_model_full_config = checkpoint.model_config  # what the exported one is built of
    model.base_tasks = checkpoint.tasks_config
    if train is not None:
        train_only(model, train)
    return model


def open_inference(path: str, trust_files: bool = False) -> MLIPInferenceCheckpoint:
    """An inference checkpoint, of which nothing is run.

    Args:
        path: an ``inference_ckpt.pt``.
        trust_files: open it also if it asks for more than tensors, plain values and parts of models;
            whatever it asks for then runs.

    Raises:
        UntrustedFile: it asks for more; says what.
        ValueError: it is no inference checkpoint.
    """
    checkpoint = open_checkpoint(path, trust_files)
    if not isinstance(checkpoint, MLIPInferenceCheckpoint):
        raise ValueError(
            f"{path}: expected an inference checkpoint of fairchem 2 (inference_ckpt.pt), found a "
            f"{type(checkpoint).__name__}: checkpoints of fairchem 1 and of a training are others"
        )
    for config in (checkpoint.model_config, checkpoint.tasks_config):
        require_model_parts(path, config, trust_files)
    return checkpoint


def open_potential(path: str, trust_files: bool = False) -> MLIPInferenceCheckpoint:
    """``open_inference`` of what predicts forces.

    Raises:
        ValueError: as there, or a model of displacements.
    """
    checkpoint = open_inference(path, trust_files)
    if predicts_displacements(checkpoint):
        raise ValueError(
            f"{path}: expected a potential, found a model of displacements (signal=direct), whose forces "
            "mean nothing. Take the base that it was trained from"
        )
    return checkpoint


def build_model(
    path: str, checkpoint: MLIPInferenceCheckpoint, overrides: Mapping[str, Any] | None = None
) -> HydraModel:
    """The model of an opened checkpoint with its averaged weights, built by fairchem.

    It takes what was opened, so that nobody can have changed the file in between.

    Raises:
        ValueError: fairchem cannot build it, or a weight is not finite.
        ImportError: a package of the model is missing.
    """
    try:
        averaged = load_inference_model(
            path, overrides, use_ema=True, return_checkpoint=False, preloaded_checkpoint=checkpoint
        )
    except ImportError:
        raise
    except Exception as error:  # whatever models, Hydra and PyTorch raise
        changed = f", with overrides={dict(overrides)}" if overrides else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        raise ValueError(
            f"{path}: expected weights that fit the model of its model config{changed}, and found that "
            f"it cannot be built ({reason}). Take another file, or other overrides"
        ) from error
    for name, parameter in averaged.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"{path}: {name} has NaN or infinity: expected finite weights. Take another file, or "
                "the checkpoint of an earlier epoch"
            )
    return averaged.module


def require_file(path: str, hint: str) -> None:
    """Refuse a checkpoint that is not there.

    Raises:
        FileNotFoundError: names the file and what to do.
    """
    if text := no_base(path, hint):
        error = FileNotFoundError(text)
        logging.error(error)  # Hydra prints the exception too, but as one line among many
        raise error


def load_tasks(path: str, dataset: str, hint: str = "", trust_files: bool = False) -> list[Task]:
    """The tasks of an inference checkpoint for a data set: outputs, normalizers and units.

    Args:
        path: an ``inference_ckpt.pt``.
        dataset: the name that the tasks list among their ``datasets``, such as ``oc25``.
        hint: what to tell somebody who does not have the file.
        trust_files: as ``open_inference``.

    Raises:
        FileNotFoundError: names the file and what to do.
        ValueError: as ``open_potential``, or none of its tasks is for forces of that data set; says
            which there are.
    """
    require_file(path, hint)
    tasks = [instantiate(config) for config in open_potential(path, trust_files).tasks_config]
    found = [task for task in tasks if dataset in task.datasets]
    if not any(task.property == "forces" for task in found):
        known = sorted({each for t in tasks if t.property == "forces" for each in t.datasets})
        if not known:
            raise ValueError(
                f"base potential {path}: expected a task of forces, found "
                f"{', '.join(task.property for task in tasks) or 'no task'}. Take another base with "
                "base=PATH"
            )
        raise ValueError(
            f"base potential {path} predicts forces for the data sets {', '.join(known)}, "
            f"not for {dataset!r}: choose one of them with dataset=NAME"
        )
    return found


DISPLACEMENTS = "displacements"  # the property of what ``signals.Direct`` has trained


def export_tasks(file: str | Path, model: HydraModel, displaces: bool = False) -> None:
    """Give an exported inference checkpoint the tasks of the base that ``model`` came from.

    fairchem writes what ``tasks`` is in the config. Where that is the call of ``load_tasks``, a
    list of tasks has to take its place, all that the base has. Where the model ``displaces``, there
    are no others than its tasks of forces, and their property is ``DISPLACEMENTS``: fairchem's
    predictor has no such property, so that nobody takes the model for a potential.
    """
    # fairchem wrote it a moment ago, in this process, and opened it in the same way.
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    called = not OmegaConf.is_list(checkpoint.tasks_config)
    if called:
        checkpoint.tasks_config = model.base_tasks
    if displaces:
        forces = [task for task in checkpoint.tasks_config if task["property"] == "forces"]
        checkpoint.tasks_config = OmegaConf.create(
            [OmegaConf.merge(task, {"property": DISPLACEMENTS}) for task in forces]
        )
    if called or displaces:
        torch.save(checkpoint, file)


def predicts_displacements(checkpoint: MLIPInferenceCheckpoint) -> bool:
    """Whether ``export_tasks`` has said so of an opened checkpoint."""
    return any(task["property"] == DISPLACEMENTS for task in checkpoint.tasks_config)


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
    """Say in the log what fine-tuning the forces does to whatever else the model predicts."""
    if is_conservative(model):
        logging.warning(
            "forces are the gradient of the energy, and stay so. The energy itself is not trained on: it "
            "may shift, by another amount for each composition, and so may the stress."
        )
        return
    others = sorted(name for name in model.output_heads if name != task.name)
    if others:
        logging.warning(
            f"only forces are fine-tuned (task {task.name}). The heads {', '.join(others)} stay in "
            "the exported model; what only they use keeps its values, and they run on features "
            "that change under them: their energies no longer match the forces. List their tasks "
            "in the config to have them in the exported checkpoint."
        )
