"""A base with random weights: does training through relaxations work from nothing?

    python -m benchmarks.random_base runs/random_base.pt
    python -m benchmarks.study run random

It has the architecture, the tasks and the normalizer of another base, and weights as fairchem initializes
them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from hydra.utils import instantiate

from fairchem_gdeq.api.potential import load_potential

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--like", default=str(ROOT / "data/si/base/esen.pt"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    potential = load_potential(arguments.like)
    torch.manual_seed(arguments.seed)
    potential.model.load_state_dict(instantiate(potential.config).state_dict())
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    potential.save(arguments.file)
    print(f"{arguments.file}: as {arguments.like}, with weights of seed {arguments.seed}")


if __name__ == "__main__":
    main()
