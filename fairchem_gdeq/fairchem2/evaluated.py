"""The models that are scored: a run's own, opened from their checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import UNIT_INFERENCE_CHECKPOINT, Task
from hydra.utils import instantiate
from torch import nn

from fairchem_gdeq.evaluation.scoring import BASE, TUNED, EvaluatedModel
from fairchem_gdeq.fairchem2.base import build_model, open_inference, predicts_displacements
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.fields import force_task
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.history import STATE
from fairchem_gdeq.training.swap import LEFTOVERS


def evaluated(name: str, model: HydraModel, is2rs: IS2RS, compiled: bool) -> EvaluatedModel:
    """A row of the table, compiled where the trainer is."""
    if compiled:
        compile_backbone(model)
    return EvaluatedModel(name, model, is2rs)


def chosen_file(checkpoint: str | None, results: Path) -> Path | None:
    """The file of the tuned model; None: there is none, which is said, or the base alone is asked for.

    Args:
        checkpoint: a file that is named, or ``base``; None: the run's best epoch.
        results: the run's folder of results.

    Raises:
        FileNotFoundError: ``checkpoint`` is given and does not exist.
        ValueError: it is a folder.
    """
    if checkpoint == BASE:
        return None
    path = Path(checkpoint or results / "best" / UNIT_INFERENCE_CHECKPOINT)
    if path.is_file():
        return path
    # A kill, or a training that is at it, is between the two halves of a swap.
    before = path.parent.with_name(path.parent.name + LEFTOVERS[1]) / path.name
    if checkpoint is None and not path.parent.exists() and before.is_file():
        return before
    if path.is_dir():
        raise ValueError(_a_folder(path))
    if checkpoint is not None:
        raise FileNotFoundError(
            f"checkpoint {path}: no such file: expected an inference_ckpt.pt. Name one with "
            "checkpoint=PATH"
        )
    logging.warning(
        f"{path}: no tuned model yet, so only the base is used. Train first with --mode train, or name a "
        "model with checkpoint=PATH"
    )
    return None


def _a_folder(path: Path) -> str:
    """What to say where a folder is named in the place of the file that may be in it."""
    places = (path, path / "results" / "best")  # of a model, and of a run
    files = [place / UNIT_INFERENCE_CHECKPOINT for place in places]
    inside = next((file for file in files if file.is_file()), None)
    return f"checkpoint {path}: expected a file ({UNIT_INFERENCE_CHECKPOINT}), found a folder. " + (
        f"Name the file in it: checkpoint={inside}"
        if inside
        else "None is in it: name another with checkpoint=PATH"
    )


def no_tuned(results: Path) -> str:
    """What to say where structures are to be predicted, and nobody has asked for the base's."""
    return (
        f"--mode predict: no tuned model in {results}: expected results/best of a training. Train first "
        "with --mode train, name a model with checkpoint=PATH, or take the base with checkpoint=base"
    )


def warn_of_another_kind(path: Path, tuned: HydraModel, base: HydraModel) -> None:
    """Say where a table will be of two architectures: backbones of other classes or sizes."""
    found, expected = _kind(tuned.backbone), _kind(base.backbone)
    if found != expected:
        logging.warning(
            f"checkpoint {path} is a {found}, and the base a {expected}: the table compares two "
            "architectures, not a model with what it was"
        )


def warn_of_another_step(path: Path, state: Mapping[str, Any], alpha: float) -> None:
    """Say where a table will be of two steps of the operator, none of them learnt.

    Args:
        path: of the tuned model.
        state: the trainer's, beside it.
        alpha: the step of now, with which the base relaxes, Angstrom per (eV/Angstrom).
    """
    trained = float(state["alpha"])
    if state.get("alpha_optimizer") is None and not math.isclose(trained, alpha, rel_tol=1e-6):
        logging.warning(
            f"checkpoint {path} was trained with alpha={trained:g} and relaxes with it, and the base "
            f"with alpha={alpha:g}: the table compares two steps, not a model with what it was. Take "
            f"alpha={trained:g}"
        )


def _kind(backbone: nn.Module) -> str:
    count = sum(each.numel() for each in backbone.parameters())
    return f"{type(backbone).__name__} of {count:,} parameters"


def open_tuned(
    path: Path, is2rs: IS2RS, compiled: bool, trust_files: bool, datasets: Sequence[str]
) -> EvaluatedModel:
    """The tuned model of an inference checkpoint, with the checkpoint's own tasks.

    A learnt step is in the trainer's file beside it. A model of displacements is used in one shot.

    Args:
        path: the file.
        is2rs, compiled: as the trainer has them.
        trust_files: as ``base.open_inference``.
        datasets: of the base's force task, one of which it must have been trained for.

    Raises:
        ValueError: as ``base.open_inference``, or it is of other data sets.
    """
    checkpoint = open_inference(str(path), trust_files)
    known = {name for task in checkpoint.tasks_config for name in task["datasets"]}
    if not known & set(datasets):
        raise ValueError(
            f"checkpoint {path} is for the data sets {', '.join(sorted(known)) or 'none'}, not for "
            f"{', '.join(map(repr, datasets))}: expected a model that this base has become. Name another "
            "with checkpoint=PATH"
        )
    model = build_model(str(path), checkpoint)
    if predicts_displacements(checkpoint):
        is2rs = is2rs.of_displacements
    else:
        wanted = [t for t in checkpoint.tasks_config if set(t["datasets"]) & set(datasets)]
        model.own_tasks = [instantiate(task) for task in wanted]
        force_task(model.own_tasks).normalizer.to(get_device_for_local_rank())
    if (file := path.with_name(STATE)).is_file():
        state = open_checkpoint(file)
        warn_of_another_step(path, state, is2rs.alpha)
        is2rs = is2rs.with_learnt(state)
    return evaluated(TUNED, model, is2rs, compiled)


def tasks_of(model: nn.Module, of_run: list[Task]) -> list[Task]:
    """What a model's heads predict, by its checkpoint; else by the run's.

    A checkpoint that is not the run's may have been trained with other units or means.
    """
    found: list[Task] = getattr(model, "own_tasks", of_run)
    return found
