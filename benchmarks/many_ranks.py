"""What many processes wait for each other, by a simulation with evaluations that were measured.

python -m benchmarks.many_ranks --structures 460328 --ranks 8 32 128 256

A training step ends when the slowest process has ended. What a structure costs, in force evaluations, is
K + 3K for the window, what its equilibrium solve took, and 3 for each product with J_G of its adjoint.
Solves are drawn from those of the slabs' test structures (benchmarks/study/outcomes/slabs).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from fairchem_gdeq.evaluation.scoring import TUNED

OUTCOMES = Path(__file__).parent / "study" / "outcomes" / "slabs"


def solves(horizon: int) -> np.ndarray:
    """Force evaluations of the equilibrium solves that were measured, without the plain steps before."""
    found = [
        evaluations - horizon
        for path in sorted(OUTCOMES.glob("gdeq_*.json"))
        for _, _, evaluations in json.loads(path.read_text())["test"][TUNED]
    ]
    return np.array(found)


def wait(costs: np.ndarray, ranks: int, batch: int, steps: int, rng: np.random.Generator) -> float:
    """Time of the slowest process over that of the mean, in the mean of steps."""
    drawn = rng.choice(costs, (steps, ranks, batch)).sum(-1)
    return float((drawn.max(1) / drawn.mean(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=460_328, help="of the training split")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="a process")
    parser.add_argument("--horizon", type=int, default=40, help="K of the window")
    parser.add_argument("--plain", type=int, default=0, help="plain steps in the measured numbers")
    parser.add_argument("--vjps", type=int, default=16, help="of an adjoint")
    parser.add_argument("--steps", type=int, default=2000, help="simulated")
    parser.add_argument("--ms", type=float, nargs="+", default=[1, 3, 10], help="an evaluation")
    arguments = parser.parse_args()
    fixed = 4 * arguments.horizon + 3 * arguments.vjps
    costs = fixed + solves(arguments.plain)
    rng = np.random.default_rng(0)
    print(f"evaluations a structure: {costs.mean():.0f} (window and adjoint {fixed})")
    print("| processes | " + " | ".join(f"{b} a process" for b in arguments.batches) + " |")
    print("|---:|" + "---:|" * len(arguments.batches))
    for ranks in arguments.ranks:
        waits = [wait(costs, ranks, b, arguments.steps, rng) for b in arguments.batches]
        print(f"| {ranks} | " + " | ".join(f"{each:.2f}" for each in waits) + " |")
    print("\nhours of an epoch, by milliseconds of an evaluation of one structure in its batch")
    print("| processes | " + " | ".join(f"{ms:g} ms" for ms in arguments.ms) + " |")
    print("|---:|" + "---:|" * len(arguments.ms))
    for ranks in arguments.ranks:
        slowest = wait(costs, ranks, arguments.batches[-2], arguments.steps, rng)
        hours = arguments.structures * costs.mean() * slowest / ranks / 3.6e6
        print(f"| {ranks} | " + " | ".join(f"{hours * ms:.1f}" for ms in arguments.ms) + " |")


if __name__ == "__main__":
    main()
