"""The models that are scored: a run's own, opened from their checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fairchem.core.models.base import HydraModel

from fairchem_gdeq.evaluation.scoring import TUNED, EvaluatedModel
from fairchem_gdeq.fairchem2.base import build_model, open_inference
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.history import STATE


def evaluated(name: str, model: HydraModel, is2rs: IS2RS, compiled: bool) -> EvaluatedModel:
    """A row of the table, compiled where the trainer is."""
    if compiled:
        compile_backbone(model)
    return EvaluatedModel(name, model, is2rs)


def open_tuned(path: Path, is2rs: IS2RS, compiled: bool, trust_files: bool) -> EvaluatedModel:
    """The tuned model of an inference checkpoint.

    A step alpha that was learnt is in the trainer's file beside the checkpoint.

    Raises:
        ValueError: as ``base.open_inference``.
    """
    model = build_model(str(path), open_inference(str(path), trust_files))
    state = path.with_name(STATE)
    if state.is_file():
        is2rs = replace(is2rs, alpha=float(open_checkpoint(state)["alpha"]))
    return evaluated(TUNED, model, is2rs, compiled)
