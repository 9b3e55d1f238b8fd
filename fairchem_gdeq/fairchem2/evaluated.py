"""The models that are scored: a run's own, opened from their checkpoints."""

from __future__ import annotations

from pathlib import Path

from fairchem.core.models.base import HydraModel

from fairchem_gdeq.evaluation.scoring import TUNED, EvaluatedModel
from fairchem_gdeq.fairchem2.base import build_model, open_inference, predicts_displacements
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

    A learnt step is in the trainer's file beside it. A model of displacements is used in one shot.

    Raises:
        ValueError: as ``base.open_inference``.
    """
    checkpoint = open_inference(str(path), trust_files)
    if predicts_displacements(checkpoint):
        is2rs = is2rs.of_displacements
    if (state := path.with_name(STATE)).is_file():
        is2rs = is2rs.with_learnt(open_checkpoint(state))
    return evaluated(TUNED, build_model(str(path), checkpoint), is2rs, compiled)
