"""What decides the numbers of a run of fairchem 1, with which alone its folder goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairchem.core.common import distutils

from fairchem_gdeq.training.contents import contents_of
from fairchem_gdeq.training.same_run import CONTENTS, PROCESSES, flat, without

SECTIONS = ("task", "model", "optim", "dataset", "val_dataset")
FREE = (
    *("task.split", "task.baselines*", "task.metrics*", "task.reference", "task.run_id"),
    *("task.trust_files", "task.base_hint", "task.most_diverged", "task.forces.val*"),
    *("*.guidance_memory", "*num_workers", "optim.eval_batch_size", "optim.checkpoint_every"),
    *("optim.eval_every", "*.print_every"),
)


def settings_of(config: Mapping[str, Any]) -> str:
    """As ``training.same_run.settings_of``, of a trainer's config."""
    found = dict(flat("", {key: config.get(key) for key in SECTIONS}))
    found |= {f"{key}{CONTENTS}": told for key, told in contents_of(found)}
    return without(FREE, found | {PROCESSES: distutils.get_world_size()})
