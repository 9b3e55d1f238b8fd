"""The base potential that is fine-tuned."""

from __future__ import annotations

from pathlib import Path

from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import initialize_finetuning_model


def load_base(path: str) -> HydraModel:
    """A fairchem 2 inference checkpoint, through fairchem's own fine-tuning loader.

    Raises:
        FileNotFoundError: names the file and what to do.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"base potential {path}: no such file (working folder {Path.cwd()}). Name a fairchem 2 "
            "inference checkpoint (inference_ckpt.pt) with base=PATH; the silicon configs expect to "
            "be started in the folder of the repository."
        )
    return initialize_finetuning_model(path)
