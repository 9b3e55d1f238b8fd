"""Keep of a checkpoint what opening it needs, to put it into the repository.

    python data/ship.py runs/.../checkpoints/final/inference_ckpt.pt data/slabs/base/esen.pt
    python data/ship.py checkpoints/NAME/best_checkpoint.pt data/slabs/base/gemnet_oc.pt

The first is of fairchem 2, the second of fairchem 1.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from omegaconf import OmegaConf

from fairchem_gdeq.training.checkpoint_files import open_checkpoint

KEPT = ("state_dict", "normalizers", "elementrefs", "val_metrics", "amp", "config")


def fairchem2(checkpoint: Any) -> Any:
    """An inference checkpoint with its averaged weights (EMA) alone, at half the size.

    fairchem's predictor and ``load_base`` use those. Here they stand in place of the last ones too, so
    that whatever opens the file finds the same potential; being the same tensors, they are written once.
    """
    weights = checkpoint.model_state_dict
    for name in weights:
        weights[name] = checkpoint.ema_state_dict[f"module.{name}"]
    # A part of a config holds on to the whole, with the paths of the machine that it was used on.
    for key in ("model_config", "tasks_config"):
        part = OmegaConf.create(getattr(checkpoint, key))
        setattr(checkpoint, key, OmegaConf.to_container(part, resolve=True))
    return checkpoint


def fairchem1(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without optimizer and without paths of the machine that trained it.

    fairchem 1 would look for the file of scale factors, which are among the weights by now.
    """
    kept = {key: checkpoint[key] for key in KEPT}
    kept["config"].pop("cmd", None)
    kept["config"]["model"].pop("scale_file", None)
    return kept


def main() -> None:
    """From the one file to the other."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, shipped = sys.argv[1:]
    checkpoint = open_checkpoint(source)
    keep = fairchem1 if isinstance(checkpoint, dict) else fairchem2
    torch.save(keep(checkpoint), shipped)


if __name__ == "__main__":
    main()
