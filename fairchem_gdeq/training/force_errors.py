"""A model's forces beside the labels of frames: how they agree, and their mean error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from fairchem_gdeq.evaluation.metric import Scores
from fairchem_gdeq.evaluation.task import Batch
from fairchem_gdeq.frozen.drawing import drawing_from
from fairchem_gdeq.training.frame_checks import SAMPLE, Agreement, agreement
from fairchem_gdeq.training.ranks import gather


class Compared(NamedTuple):
    """Forces of a batch of frames, on its free atoms.

    Attributes:
        predicted, labels: [m, 3], eV/Angstrom, of the model and of the frames.
        frames: how many the batch has.
    """

    predicted: Tensor
    labels: Tensor
    frames: int


def compared(batch: Batch, predicted: Tensor, labels: Tensor) -> Compared:
    """Forces [n, 3] of all atoms of a batch, eV/Angstrom, without those of fixed ones."""
    free = batch.fixed == 0
    return Compared(predicted[free], labels[free], len(batch.natoms))


def agreement_of(batches: Iterable[Compared]) -> Agreement:
    """How labels compare with a model's forces, of the first batches that have ``SAMPLE`` frames."""
    predicted, labels, count = [], [], 0
    for each in batches:
        predicted.append(each.predicted.cpu().numpy())
        labels.append(each.labels.cpu().numpy())
        count += each.frames
        if count >= SAMPLE:
            break
    return agreement(np.concatenate(predicted), np.concatenate(labels))


def force_scores(
    models: Mapping[str, nn.Module], batches_of: Callable[[nn.Module], Iterable[Compared]]
) -> dict[str, Scores]:
    """The mean absolute error ``force_mae`` of a force component of each model, eV/Angstrom.

    Args:
        models: by their names in the table.
        batches_of: this rank's part of the frames beside a model's forces.
    """
    scores = {}
    for name, model in models.items():
        device = next(model.parameters()).device
        with drawing_from(0, device):  # the same for each model, and in each process
            scores[name] = {"force_mae": _mean_error(batches_of(model))}
    return scores


def _mean_error(batches: Iterable[Compared]) -> float:
    """Over all ranks' free atoms."""
    total, count = 0.0, 0
    for each in batches:
        wrong = (each.predicted - each.labels).abs()
        total += float(wrong.double().sum())
        count += wrong.numel()
    every: list[tuple[float, int]] = gather([(total, count)])
    return sum(part for part, _ in every) / max(sum(part for _, part in every), 1)
