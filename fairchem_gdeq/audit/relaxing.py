"""Relaxing a sample of pairs with both models."""

from __future__ import annotations

import numpy as np
import torch
from fairchem.core.units.mlip_unit.mlip_unit import Task
from tqdm import tqdm

from fairchem_gdeq.api.job import Code, Job
from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import relaxed_copy
from fairchem_gdeq.audit.relaxations import End, Relaxed
from fairchem_gdeq.audit.sample import Pair
from fairchem_gdeq.evaluation.scoring import EvaluatedModel
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.training.ranks import rank

SOUND = (Code.CONVERGED, Code.MAX_STEPS)
UNABLE = (Code.BAD_INPUT, Code.FAILED, Code.OUT_OF_MEMORY)


def potential_of(
    chosen: EvaluatedModel, tasks: list[Task], dataset: str, device: torch.device
) -> Potential:
    """A scored model as the Python interface has it, on a device.

    Raises:
        ValueError: it predicts displacements, of which no check means anything.
    """
    if chosen.is2rs.relaxer.one_shot:
        raise ValueError(
            f"the {chosen.name} model predicts displacements (signal=direct), and an audit compares "
            "forces: expected a potential, checkpoint=PATH"
        )
    model = hydra_model(chosen.model).to(device).eval()
    return Potential(model, tasks, dataset, chosen.is2rs, name=chosen.name)  # type: ignore[arg-type]


def relax_pairs(pairs: list[Pair], base: Potential, tuned: Potential, budget: int) -> list[Relaxed]:
    """Where both models take the starts, as each one's ``task`` says.

    Args:
        pairs: those; one that cannot be relaxed has an end that says why.
        base, tuned: the models.
        budget: atoms evaluated together.
    """
    ends = [_ends(pairs, potential, budget) for potential in (base, tuned)]
    return [Relaxed(pair, *both) for pair, *both in zip(pairs, *ends, strict=True)]


def _ends(pairs: list[Pair], potential: Potential, budget: int) -> list[End]:
    starts, targets = [pair.start for pair in pairs], [pair.target for pair in pairs]
    job = Job(starts, potential, potential.task, budget, targets)
    name = f"relax with {potential.name}"
    with tqdm(total=len(pairs), desc=name, leave=False, disable=rank() > 0) as bar:
        found = dict(job.run(bar))
    ends = []
    for index, pair in enumerate(pairs):
        end = found[index]
        atoms = pair.start if end.positions is None else relaxed_copy(pair.start, end.positions)
        failure = ""
        if end.code in UNABLE:
            failure = (end.reason or end.code.value).removeprefix(f"structure {index}: ")
        ends.append(
            End(
                atoms=atoms,
                delta_q=np.nan if failure else end.delta_q,
                converged=end.code is Code.CONVERGED,
                sound=end.code in SOUND,
                failure=failure,
            )
        )
    return ends
