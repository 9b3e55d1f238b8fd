"""What a finished run leaves for Python: its model, and how it relaxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairchem.core.units.mlip_unit.mlip_unit import UNIT_INFERENCE_CHECKPOINT
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.history import STATE

CONFIG = "canonical_config.yaml"  # fairchem's name for the config as it was run


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
        config, best = folder / CONFIG, folder / "results" / "best"
        checkpoint = best / UNIT_INFERENCE_CHECKPOINT
        for path in (config, checkpoint):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{folder}: no {path.relative_to(folder)} in it: expected the folder of a run that "
                    "has ended, such as runs/si/gdeq, or a file inference_ckpt.pt"
                )
        unit, stored = "runner.train_eval_unit", OmegaConf.load(config)
        task = instantiate(OmegaConf.select(stored, f"{unit}.is2rs"))
        if not isinstance(task, IS2RS):
            raise ValueError(
                f"{config}: no runner.train_eval_unit.is2rs in it: expected a run of this package"
            )
        if (state := best / STATE).is_file():
            task = task.with_learnt(open_checkpoint(state))
        return cls(checkpoint, task, OmegaConf.select(stored, f"{unit}.tasks.dataset"))
