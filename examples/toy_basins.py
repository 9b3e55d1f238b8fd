"""The paper's toy control (appendix C): a known right basin, and how the horizon K decides.

    python examples/toy_basins.py --out toy.png

One atom moves in two wells at x = -0.5 and x = +0.5. It starts on the wrong side of the barrier,
and it is known which side is right. The force is the wells' plus a learned local push, bounded below
what it takes to remove a well. So training at the fixed point alone (K = 0) can only shift the wrong
minimum, while a few differentiated steps reach the start, where a small push decides.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairchem_gdeq.relax import GDEQ, GMRES, Implicit, Operator, Picard, Structures, solve

HORIZONS = (0, 1, 2, 5, 10, 20)
PUSH = 0.1  # the wells' own force is at most 0.19 between them
WIDTH = 0.12  # of the radial basis; the barrier is 0.5 from either well
CENTRES = torch.linspace(-1, 1, 21)


class Wells(nn.Module):
    """F_x = x - 4 x^3 + PUSH tanh(w_side . phi(x)); harmonic in y and z. One atom a structure."""

    translation_invariant = False
    rotation_equivariant = False

    def __init__(self, side: Tensor, weights: nn.Parameter) -> None:
        super().__init__()
        self.side, self.weights = side, weights

    def forward(self, positions: Tensor) -> Tensor:
        """Forces [s, 3]."""
        x = positions[:, 0]
        basis = torch.exp(-(((x[:, None] - CENTRES.to(x)) / WIDTH) ** 2))
        push = PUSH * (basis * self.weights[self.side]).sum(-1).tanh()
        return torch.stack([x - 4 * x**3 + push, -positions[:, 1], -positions[:, 2]], dim=-1)

    def select(self, structures: Tensor) -> Wells:
        """The structures where the mask holds; the weights are shared."""
        return Wells(self.side[structures], self.weights)

    def join(self, others: Sequence[Wells]) -> Wells:
        """Its own structures and, after them, those of the others."""
        return Wells(torch.cat([self.side, *(other.side for other in others)]), self.weights)

    def freeze(self, positions: Tensor) -> Wells:
        """There is nothing to freeze."""
        return self

    def unfreeze(self) -> Wells:
        """There is nothing to build anew."""
        return self


def problem(seed: int, count: int = 32) -> tuple[Operator, Tensor, Tensor]:
    """Operator, starts and targets [count, 3]: half of the structures belong left, half right."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.arange(count) % 2
    sign = 2.0 * side - 1.0
    start = torch.zeros(count, 3)
    start[:, 0] = -sign * (0.02 + 0.12 * torch.rand(count, generator=generator))
    target = torch.zeros(count, 3)
    target[:, 0] = 0.5 * sign
    weights = nn.Parameter(0.1 * torch.randn(2, len(CENTRES), generator=generator))
    structures = Structures(
        batch=torch.arange(count),
        free=torch.ones(count, dtype=torch.bool),
        masses=torch.ones(count),
        cell=torch.zeros(count, 3, 3),
        pbc=torch.zeros(count, 3, dtype=torch.bool),
    )
    return Operator.build(Wells(side, weights), structures, alpha=0.3), start, target


def final_error(operator: Operator, start: Tensor, target: Tensor) -> float:
    """Mean distance from the target after a plain relaxation from X_0, no guidance."""
    end = solve(operator, start, Picard(), fmax=1e-4, max_steps=2000)
    return float((end.positions - target).norm(dim=-1).mean())


def train(horizon: int, seed: int, steps: int = 150) -> float:
    """Final error after training with Algorithm 1 at this horizon (0: implicit only)."""
    operator, start, target = problem(seed)
    optimizer = torch.optim.Adam([operator.field.weights], lr=0.05)  # type: ignore[attr-defined]
    settings = {
        "solver": Picard(),
        "fmax": 1e-3,
        "max_steps": 500,
        "adjoint": GMRES(tol=1e-4, damping=0.0),
    }
    signal = GDEQ(horizon=horizon, **settings) if horizon else Implicit(**settings)
    for _ in range(steps):
        optimizer.zero_grad()
        signal(operator, start, target)
        optimizer.step()
    return final_error(operator, start, target)


def curve(seeds: int, steps: int) -> dict[int, list[float]]:
    """Final errors by horizon, one a seed."""
    return {k: [train(k, seed, steps) for seed in range(seeds)] for k in HORIZONS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("toy_basins.png"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    untrained = final_error(*problem(0))
    print(f"untrained: mean final error {untrained:.3f}")
    errors = curve(arguments.seeds, arguments.steps)
    for k, values in errors.items():
        spread = torch.tensor(values)
        print(
            f"K = {k:2d}: mean final error {spread.mean():.3f} ({spread.min():.3f} to {spread.max():.3f})"
        )

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    means = [sum(v) / len(v) for v in errors.values()]
    axes.plot(range(len(errors)), means, "o-")
    axes.set_xticks(range(len(errors)), [str(k) for k in errors])
    axes.set(xlabel="guidance horizon K", ylabel="mean final error", ylim=(0, None))
    fig.savefig(arguments.out, dpi=130)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
