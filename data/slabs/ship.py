"""Keep of a fairchem-core 1.10 checkpoint what opening it needs.

    python data/slabs/ship.py best_checkpoint.pt data/slabs/base/NAME.pt

Paths of the machine that trained it go: fairchem 1 would look for the file of scale factors, which are
among the weights by now.
"""

from __future__ import annotations

import sys

import torch

KEPT = ("state_dict", "normalizers", "elementrefs", "val_metrics", "amp", "config")


def main() -> None:
    """From the one file to the other."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, shipped = sys.argv[1:]
    whole = torch.load(source, map_location="cpu", weights_only=False)
    checkpoint = {key: whole[key] for key in KEPT}
    checkpoint["config"].pop("cmd", None)
    checkpoint["config"]["model"].pop("scale_file", None)
    torch.save(checkpoint, shipped)


if __name__ == "__main__":
    main()
