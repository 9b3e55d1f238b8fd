"""How many force evaluations a better first guess of the Hessian could save our L-BFGS: a bound.

python -m benchmarks.first_guess                          # both problems
python -m benchmarks.first_guess silicon --structures 4

A preconditioner (Packwood et al. 2016) estimates the Hessian from distances. Here the guess is the
Hessian itself, of the forces at X_0, or at the X* where our L-BFGS ended, which no preconditioner could
know. Eigenvalues count by their size, those below --floor as --floor. The evaluations that the
Hessians take are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.numbers import print_head, spread
from benchmarks.peers.problems import PROBLEMS, compare_each, opened
from benchmarks.peers.relaxations import Ended, add_limits, one_by_one, same_minimum, timed, times
from fairchem_gdeq.relax import LBFGS, Operator, Solver
from fairchem_gdeq.relax.solvers import SolverState
from fairchem_gdeq.relax.solvers.base import limit

# In variables in which the guess is the identity; steps are limited in Angstrom, after it.
INNER = LBFGS(stiffness=1.0, softest=0.3, max_step=1e6)
STEP = 0.01  # Angstrom, of central differences
HEADER = ("first guess", "evaluations", "mean", "times ours", "converged", "same end as ours")


@dataclass(frozen=True)
class Guessed:
    """L-BFGS in the variables P^1/2 X of one structure, in which the guess P is the identity.

    Attributes:
        root, inverse: P^1/2 and P^-1/2 [3n, 3n]; zero on fixed atoms, which do not move.
        max_step: as in ``LBFGS``.
    """

    root: Tensor
    inverse: Tensor
    max_step: float = LBFGS.max_step

    def start(self, operator: Operator, positions: Tensor) -> SolverState:
        """No pair yet."""
        return INNER.start(operator, times_vector(self.root, positions))

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: Any
    ) -> tuple[Tensor, SolverState]:
        """As of ``LBFGS``."""
        there, pull = times_vector(self.root, positions), times_vector(self.inverse, forces)
        move, state = INNER.propose(operator, there, pull, state)
        return limit(times_vector(self.inverse, move), self.max_step, operator), state


def times_vector(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Of atoms' vectors [n, 3]."""
    return (matrix @ vectors.flatten()).view_as(vectors)


def hessian(operator: Operator, positions: Tensor) -> Tensor:
    """-dF/dX [3n, 3n] of the free atoms by central differences, symmetric, eV/Angstrom^2; else zero."""
    free = operator.structures.free.repeat_interleave(3).nonzero().squeeze(-1)
    found = positions.new_zeros(positions.numel(), positions.numel())
    with torch.no_grad():
        for k in free.tolist():
            step = torch.zeros_like(positions).flatten()
            step[k] = STEP
            step = step.view_as(positions)
            change = operator.forces(positions - step) - operator.forces(positions + step)
            found[k] = change.flatten() / (2 * STEP)
    return (found + found.T) / 2


def guessed(hessian: Tensor, free: Tensor, floor: float) -> Guessed:
    """The solver with this guess, its eigenvalues at least ``floor``, of free atoms [n]."""
    values, vectors = torch.linalg.eigh(hessian.double())
    roots = values.abs().clamp_min(floor).sqrt()
    mask = free.repeat_interleave(3).double()
    root, inverse = (
        ((vectors * scale) @ vectors.T * mask[:, None] * mask).to(hessian.dtype)
        for scale in (roots, roots.reciprocal())
    )
    return Guessed(root, inverse)


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Measure one problem and print its table."""
    given = opened(PROBLEMS[name], arguments.structures)
    operators = [given.operator(row) for row in given.rows]

    def relaxed(solvers: Sequence[Solver[Any]]) -> list[Ended]:
        limits = (arguments.fmax, arguments.max_steps)
        return one_by_one(operators, given.starts, solvers, *limits)

    ours = timed(partial(relaxed, [LBFGS()] * len(operators)))
    ends = [
        torch.tensor(end, dtype=x.dtype)
        for end, x in zip(ours["positions"], given.starts, strict=True)
    ]
    found = {"of L-BFGS: a multiple of the identity": ours}
    for place, points in (("X_0", given.starts), ("X*", ends)):
        solvers = [
            guessed(hessian(operator, at), operator.structures.free, arguments.floor)
            for operator, at in zip(operators, points, strict=True)
        ]
        found[f"the Hessian at {place}"] = timed(partial(relaxed, solvers))
    print(f"\n{name}: {arguments.structures} structures\n")
    print_head(HEADER)
    for guess, run in found.items():
        spent = run["evaluations"]
        same, asked = same_minimum(run, ours, operators, arguments.within)
        ratio = "" if run is ours else times(run, ours)
        ended = f"{sum(run['converged'])} of {len(spent)} | {same} of {asked}"
        mean = f"{sum(spent) / len(spent):.1f}"
        print(f"| {guess} | {spread(spent, 0)} | {mean} | {ratio} | {ended} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_limits(parser)
    parser.add_argument("--floor", type=float, default=3.0, help="eV/Angstrom^2")
    compare_each(parser, compare)


if __name__ == "__main__":
    main()
