"""What a finished run leaves for Python: its model, and how it relaxes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fairchem.core.units.mlip_unit.mlip_unit import UNIT_INFERENCE_CHECKPOINT
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.history import STATE
from fairchem_gdeq.training.same_run import KEPT

UNIT = "runner.train_eval_unit"


@dataclass(frozen=True)
class FinishedRun:
    """A run's chosen model.

    Attributes:
        checkpoint: of inference.
        task: alpha, momentum, guidance and solver, with what was learnt of them.
        dataset: the name by which the model knows the run's data.
    """

    checkpoint: Path
    task: IS2RS
    dataset: str | None

    @classmethod
    def of(cls, folder: Path) -> FinishedRun:
        """The run of a folder, as ``job.run_dir`` and ``job.timestamp_id`` name it.

        Raises:
            FileNotFoundError: it is not one, or it has no chosen model yet.
            ValueError: it is of another trainer.
        """
        # Not fairchem's canonical_config.yaml: whatever is started in the folder writes that anew.
        kept, best = folder / "checkpoints" / KEPT, folder / "results" / "best"
        checkpoint = best / UNIT_INFERENCE_CHECKPOINT
        for path in (kept, checkpoint):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{folder}: no {path.relative_to(folder)} in it: expected the folder of a run that "
                    "has ended, such as runs/si/gdeq, or a file inference_ckpt.pt"
                )
        settings = OmegaConf.create()
        for key, value in json.loads(kept.read_text()).items():
            if key.startswith(f"{UNIT}.is2rs.") or key == f"{UNIT}.tasks.dataset":
                OmegaConf.update(settings, key, value)
        task = instantiate(OmegaConf.select(settings, f"{UNIT}.is2rs"))
        if not isinstance(task, IS2RS):
            raise ValueError(
                f"{kept}: expected {UNIT}.is2rs in it, as a run of this package has it"
            )
        if (state := best / STATE).is_file():
            task = task.with_learnt(open_checkpoint(state))
        return cls(checkpoint, task, OmegaConf.select(settings, f"{UNIT}.tasks.dataset"))
