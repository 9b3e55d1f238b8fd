"""VJPs and seconds of the adjoint system (I - J_G)^T w = g at fixed points, ours and TorchDEQ's solvers.

python -m benchmarks.peers_adjoint                        # both problems
python -m benchmarks.peers_adjoint slabs --structures 2 --repeats 1

All solve the undamped system of eq. 4 for the same structures, at the same X* with the same g (the
gradient of the loss of the configs), from zero. All VJPs are those of one linearisation of G, as in
training; its graph is built within the time. "Dense" builds the matrix by a VJP for each free coordinate.

Tolerances of 1e-3 and more are in single precision, as training is, others in double. "Solved" is a
residual, evaluated anew, below 1.1 times the tolerance; VJPs are of the solved ones alone. TorchDEQ's
solvers have their default settings but for the number of iterations, which is the most VJPs.

What is measured is kept in --folder; the same command goes on from there. Ways come in another order in
each repeat. Seconds have medians and ranges over repeats, VJPs over structures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers.adjoint_systems import (
    BACKWARD_SOLVERS,
    Solver,
    System,
    dense,
    fixed_points,
    gmres_alone,
    gmres_batched,
    measure,
    systems_at,
    torchdeq,
)
from benchmarks.peers.kept import Kept, Measured, NotInstalled
from benchmarks.peers.numbers import print_head, print_missing, spread, turned
from benchmarks.peers.problems import PROBLEMS, compare_each, opened

HEADER = ("solver", "tolerance", "VJPs", "CPU s per structure", "wall s per structure", "solved")
SLACK = 1.1  # an iterative solver's own residual differs from the true one by rounding
SOLVERS: dict[str, Solver] = {
    "GMRES, one structure at a time": gmres_alone,
    "GMRES, batched": gmres_batched,
    **{f"TorchDEQ {name}": partial(torchdeq, name) for name in BACKWARD_SOLVERS},
    "dense": dense,
}


def dtype_for(tolerance: float) -> torch.dtype:
    """Single precision where it suffices."""
    return torch.float32 if tolerance >= 1e-3 else torch.float64


def cells(runs: Sequence[Measured], tolerance: float) -> str:
    """What stands in a row after its name."""
    first, count = runs[0], len(runs[0]["vjps"])
    good = [r <= SLACK * tolerance for r in first["residual"]]
    vjps = [n for n, solved in zip(first["vjps"], good, strict=True) if solved]
    seconds = (spread([run[clock] / count for run in runs], 3) for clock in ("cpu", "wall"))
    precision = str(dtype_for(tolerance)).removeprefix("torch.")
    return " | ".join(
        (f"{tolerance:g} ({precision})", spread(vjps, 0), *seconds, f"{sum(good)} of {count}")
    )


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Measure one problem and print its table."""
    keys = ("structures", "fmax", "max_vjps", "max_atoms", "threads")
    settings = {key: getattr(arguments, key) for key in keys}
    kept = Kept(Path(arguments.folder) / f"adjoint_{name}.jsonl", settings)
    problem, given = PROBLEMS[name], {}
    for dtype in sorted({dtype_for(tol) for tol in arguments.tolerances}, key=str):
        given[dtype] = opened(problem, arguments.structures, dtype)
    # The same points for all, from whichever precision comes first.
    points = fixed_points(next(iter(given.values())), arguments.fmax, arguments.max_atoms)
    systems: dict[torch.dtype, list[System]] = {d: systems_at(g, points) for d, g in given.items()}
    count = len(next(iter(systems.values())))
    print(
        f"\n{name}: {count} fixed points of {len(points)} structures, {arguments.repeats} repeats\n"
    )
    if not count:
        return
    missing: dict[str, str] = {}
    for repeat in range(arguments.repeats):
        for tolerance in arguments.tolerances:
            mine = systems[dtype_for(tolerance)]
            for solver in turned(list(SOLVERS), repeat):
                work = partial(measure, SOLVERS[solver], mine, tolerance, arguments.max_vjps)
                try:
                    kept(f"{solver} {tolerance:g} #{repeat}", work)
                except NotInstalled as error:
                    missing[solver] = str(error)
    print_head(HEADER)
    for solver in SOLVERS:
        if solver in missing:
            print_missing(solver, missing[solver], HEADER)
            continue
        for tolerance in arguments.tolerances:
            name_of = f"{solver} {tolerance:g}"
            runs = [kept.known[f"{name_of} #{k}"] for k in range(arguments.repeats)]
            print(f"| {solver} | {cells(runs, tolerance)} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=4, help="first ones of the test split")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-2, 1e-3, 1e-6])
    parser.add_argument("--max-vjps", type=int, default=400)
    parser.add_argument("--fmax", type=float, default=0.02, help="of the fixed points, eV/Angstrom")
    parser.add_argument("--max-atoms", type=int, default=1100, help="relaxed together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default="runs/peers", help="where measurements are kept")
    compare_each(parser, compare)


if __name__ == "__main__":
    main()
