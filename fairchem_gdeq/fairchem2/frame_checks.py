"""Frames of fairchem 2 beside the model of the run that is to train on them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.models.base import HydraModel

from fairchem_gdeq.data.overlap import Named
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.fairchem2.replay import FrameBatches, compared_with
from fairchem_gdeq.fairchem2.supported import element_limit
from fairchem_gdeq.training import run_frames
from fairchem_gdeq.training.force_errors import Compared


def check_frames(
    batches: FrameBatches, base: HydraModel, trained: Iterable[int], held: Iterable[Named]
) -> None:
    """Refuse frames that a run should not train on, and say what is strange about them.

    Args:
        batches: the frames.
        base: the untrained model.
        trained: atomic numbers of the structures that the run trains on.
        held: structures that are held out.

    Raises:
        ValueError: as ``run_frames.check_frames``.
    """
    limit, sample = element_limit(hydra_model(base)), sampled(batches, base)
    run_frames.check_frames(batches.frames, batches.source, limit, sample, trained, held)


def sampled(batches: FrameBatches, base: HydraModel) -> Iterator[Compared]:
    """Frames beside a model's forces, in an order that mixes them and is always the same."""
    device = torch.device(get_device_for_local_rank())
    model = copy.deepcopy(hydra_model(base)).to(device).eval()
    every = batches.sampler.all_batches
    order = np.random.default_rng(0).permutation(len(every))
    return compared_with(model, batches, (every[place] for place in order), device)
