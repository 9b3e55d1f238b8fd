"""What became of some structures that one way relaxed, how it is told in a table, and our own ways."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.kept import Kept, Measured
from benchmarks.peers.numbers import print_head, print_missing, spread
from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.evaluation.comparison import mean_with_interval
from fairchem_gdeq.relax import Operator, Relaxer, Solver, max_displacement, solve

HEADER = (
    *("way", "evaluations per structure", "mean", "times ours", "CPU s per structure"),
    *("wall s per structure", "converged", "same minimum"),
)
REFERENCE = "Picard, small steps"
OURS = "L-BFGS, batched"
SMALL = 0.4  # its alpha, in alphas of the config


@dataclass(frozen=True)
class Ended:
    """One structure after its relaxation.

    Attributes:
        positions: [n, 3], Angstrom, on the host.
        evaluations: force evaluations that it was in, also those after it had converged.
        converged: its largest force on a free atom is below fmax.
    """

    positions: Tensor
    evaluations: int
    converged: bool


def timed(relax: Callable[[], list[Ended]]) -> Measured:
    """All ends of a way, for ``Kept``; with its seconds of the clock and of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    ends = relax()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "evaluations": [end.evaluations for end in ends],
        "converged": [end.converged for end in ends],
        "positions": [end.positions.double().numpy().round(6).tolist() for end in ends],
    }


def same_minimum(
    found: Measured, reference: Measured, operators: Sequence[Operator], within: float
) -> tuple[int, int]:
    """How many structures ended where the reference did, and of how many that can be said.

    It can where the reference has converged. A structure that has not has not reached any minimum.

    Args:
        found, reference: of ``timed``, of the same structures.
        operators: of each structure alone: its cell, its fixed atoms, and whether shifts count.
        within: largest distance of a free atom between two ends that count as the same, Angstrom.
    """
    same = asked = 0
    for k, operator in enumerate(operators):
        if not reference["converged"][k]:
            continue
        asked += 1
        a, b = (
            torch.tensor(run["positions"][k], dtype=torch.float64) for run in (found, reference)
        )
        apart = max_displacement(a, b, operator.structures, operator.pin)
        same += found["converged"][k] and bool(apart < within)
    return same, asked


def times(found: Measured, ours: Measured) -> str:
    """Evaluations in those of ours: the geometric mean over structures, and its 95% interval."""
    logs = np.log(found["evaluations"]) - np.log(ours["evaluations"])
    mean, low, high = np.exp(mean_with_interval(logs))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def cells(runs: Sequence[Measured], same: tuple[int, int], ours: Measured | None) -> str:
    """The row of a way after its name, of all its repeats; ends are the same in all of them.

    Args:
        ours: what evaluations are compared with by pairs; None for itself.
    """
    first, count = runs[0], len(runs[0]["evaluations"])
    evaluations = first["evaluations"]
    seconds = (spread([run[clock] / count for run in runs]) for clock in ("cpu", "wall"))
    share = f" ({same[0] / same[1]:.0%})" if same[1] else ""
    entries = (
        *(spread(evaluations, 0), f"{sum(evaluations) / count:.1f}"),
        *("" if ours is None else times(first, ours), *seconds),
        *(f"{sum(first['converged'])} of {count}", f"{same[0]} of {same[1]}{share}"),
    )
    return " | ".join(entries)


def one_by_one(
    operators: Sequence[Operator],
    starts: Sequence[Tensor],
    solvers: Sequence[Solver[Any]],
    fmax: float,
    max_steps: int,
) -> list[Ended]:
    """Each structure alone, by a solver of its own."""
    ends = []
    for operator, start, solver in zip(operators, starts, solvers, strict=True):
        found = solve(operator, start, solver, fmax, max_steps)
        ends.append(Ended(found.positions, int(found.evaluations), bool(found.converged)))
    return ends


def in_flight(
    operators: Sequence[Operator], starts: Sequence[Tensor], way: Relaxer, budget: int
) -> list[Ended]:
    """Ours: as ``--mode predict`` and ``fairchem_gdeq.relax``, at most ``budget`` atoms together."""
    requests = (
        Request(k, operator, start)
        for k, (operator, start) in enumerate(zip(operators, starts, strict=True))
    )
    outcomes = {outcome.key: outcome for outcome in Stream(requests, way, budget)}
    return [
        Ended(found.positions, found.evaluations, found.converged)
        for _, found in sorted(outcomes.items())
    ]


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What is relaxed, how far, and what counts as the same minimum."""
    parser.add_argument("--structures", type=int, default=8, help="first ones of the test split")
    parser.add_argument("--fmax", type=float, default=0.02, help="eV/Angstrom")
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--within", type=float, default=0.1, help="Angstrom")
    parser.add_argument("--threads", type=int, default=1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that the tables of both fairchem lines have."""
    add_limits(parser)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-steps", type=int, default=5000)
    parser.add_argument("--max-atoms", type=int, default=1100, help="evaluated together")
    parser.add_argument("--folder", default="runs/peers", help="where measurements are kept")


def kept_settings(arguments: argparse.Namespace) -> dict[str, float]:
    """The options on which measurements depend."""
    keys = ("structures", "fmax", "max_steps", "max_atoms", "reference_steps", "threads")
    return {key: getattr(arguments, key) for key in keys}


def print_table(
    title: str,
    arguments: argparse.Namespace,
    kept: Kept,
    ways: Iterable[str],
    missing: Mapping[str, str],
    operators: Sequence[Operator],
) -> None:
    """In Markdown, with a sentence in the row of each way that is missing."""
    print(f"\n{title}: {arguments.structures} structures, {arguments.repeats} repeats\n")
    print_head(HEADER)
    reference = kept.known[REFERENCE]
    for way in (REFERENCE, *ways):
        if way in missing:
            print_missing(way, missing[way], HEADER)
            continue
        repeats = [""] if way == REFERENCE else [f" #{k}" for k in range(arguments.repeats)]
        runs = [kept.known[way + repeat] for repeat in repeats]
        same = same_minimum(runs[0], reference, operators, arguments.within)
        ours = None if way == OURS else kept.known[f"{OURS} #0"]
        print(f"| {way} | {cells(runs, same, ours)} |")
