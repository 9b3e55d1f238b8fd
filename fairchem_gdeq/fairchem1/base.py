"""The base potential: a fairchem 1 checkpoint, opened with fairchem's own loader."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.trainers import OCPTrainer

from fairchem_gdeq.training.checkpoint_files import open_checkpoint, refuse, require_model_parts

# Differ without another function: where the graph and the scale factors come from, how weights begin,
# and what acts in training mode alone.
ELSEWHERE = {
    *("otf_graph", "scale_file", "weight_init", "output_init"),
    *("alpha_drop", "drop_path_rate", "proj_drop"),
}


def load_averaged(trainer: OCPTrainer, path: str, checkpoint: dict[str, Any]) -> None:
    """Give a trainer's model a checkpoint's averaged (EMA) weights, scales and normalizers.

    A checkpoint with the last weights beside the average, such as a ``checkpoint.pt``, gives the
    average: its scores were measured with that.
    """
    trainer.ema = ExponentialMovingAverage(trainer.model.parameters(), 0.0)
    trainer.load_checkpoint(path, checkpoint, inference_only=True)
    if trainer.ema is not None:  # fairchem takes it away where the checkpoint has none
        trainer.ema.copy_to()
    trainer.ema = None
    logging.info(f"weights of {path}")


def read_checkpoint(path: str, hint: str, trust_files: bool = False) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Nothing of it is run, unless ``trust_files``.

    Raises:
        FileNotFoundError: names the file and what to do.
        UntrustedFile: it asks for more than tensors and plain values, or for the loss functions or
            outputs of something else than a model; says for what.
        ValueError: it is no checkpoint of fairchem 1.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"checkpoint {path}: no such file (working folder {Path.cwd()}). {hint}"
        )
    checkpoint = open_checkpoint(path, trust_files)
    found = set(checkpoint) if isinstance(checkpoint, dict) else set()
    if missing := {"state_dict", "config", "normalizers"} - found:
        raise ValueError(f"{path}: no checkpoint of fairchem 1, it lacks {', '.join(missing)}")
    scales = checkpoint.get("scale_dict")
    if scales and not isinstance(scales, dict):
        refuse(path, f"its scale_dict names another file, {scales}", trust_files)
    for key in ("outputs", "loss_functions"):  # what the trainer builds of its config
        require_model_parts(path, checkpoint["config"].get(key), trust_files)
    return checkpoint


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model section of a checkpoint's config, also of one from before fairchem."""
    if "model_attributes" in config:
        return {"name": config["model"], **config["model_attributes"]}
    return dict(config["model"])


def require_model(path: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a base whose hyperparameters are not those of the config.

    Cutoffs and neighbour numbers do not show in the weights' shapes, so that nothing else would.

    Raises:
        ValueError: names every hyperparameter that both have and that differs.
    """
    stored = model_config(config)
    differ = [
        f"{key}: {stored[key]!r} in the checkpoint, {wanted[key]!r} in the config"
        for key in sorted(stored.keys() & wanted.keys() - ELSEWHERE)
        if stored[key] != wanted[key]
    ]
    if differ:
        raise ValueError(
            f"base potential {path} is of another model than the config's. " + "; ".join(differ)
        )
