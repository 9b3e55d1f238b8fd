"""Evaluations and seconds to one fmax, and the minimum that is found, of ours and other optimizers.

python -m benchmarks.peers_equilibrium                        # both problems
python -m benchmarks.peers_equilibrium silicon --structures 8 --repeats 1

All have the same potential, the same starts X_0, the same criterion (the longest force on a free atom)
and literally the same forces: those of our operator, zero on fixed atoms, and without net force where
no atom is fixed. Ours and torch-sim's run many structures at a time, ASE's one at a time. Every optimizer
has its own default settings.

"Same minimum" is where a small-step Picard iteration, which follows the forces closely, goes from the
same start: no free atom farther than --within from there, of the starts that it converges from.

fairchem-core 1.10's batched L-BFGS cannot load a model of fairchem 2, and is compared in a table of its
own: ``python -m benchmarks.peers_equilibrium_fairchem1``.

What is measured is kept in --folder; the same command goes on from there. Ways come in another order in
each repeat. Seconds have medians and ranges over repeats, evaluations over structures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers import with_ase, with_torch_sim
from benchmarks.peers.kept import Kept, NotInstalled
from benchmarks.peers.numbers import turned
from benchmarks.peers.problems import PROBLEMS, Opened, Problem, compare_each, opened
from benchmarks.peers.relaxations import (
    OURS,
    REFERENCE,
    SMALL,
    Ended,
    add_options,
    in_flight,
    kept_settings,
    print_table,
    timed,
)
from fairchem_gdeq.relax import LBFGS, Picard, Relaxer


def ways_of(
    problem: Problem, given: Opened, arguments: argparse.Namespace
) -> dict[str, Callable[[], list[Ended]]]:
    """What is compared, by the name of its row."""
    limits = {"fmax": arguments.fmax, "max_steps": arguments.max_steps}
    numbers = [row.atomic_numbers for row in given.rows]
    operators, starts = [given.operator(row) for row in given.rows], given.starts
    ours = {
        "L-BFGS, fixed guess, batched": Relaxer(0, LBFGS(softest=None), **limits),
        OURS: Relaxer(0, LBFGS(), **limits),
        f"{problem.horizon} plain steps, then the same": Relaxer(
            problem.horizon, LBFGS(), **limits
        ),
    }
    budget = arguments.max_atoms
    ways: dict[str, Callable[[], list[Ended]]] = {
        name: partial(in_flight, operators, starts, way, budget) for name, way in ours.items()
    }
    for name in with_ase.OPTIMIZERS:
        ways[name] = partial(with_ase.one_at_a_time, name, operators, starts, numbers, **limits)
    for name in with_torch_sim.NAMES:
        ways[name] = partial(
            with_torch_sim.relax, name, operators, starts, numbers, **limits, budget=budget
        )
    return ways


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Measure one problem and print its table."""
    problem = PROBLEMS[name]
    given = opened(problem, arguments.structures)
    kept = Kept(Path(arguments.folder) / f"equilibrium_{name}.jsonl", kept_settings(arguments))
    operators = [given.operator(row, SMALL * problem.alpha) for row in given.rows]
    slow = Relaxer(0, Picard(), arguments.fmax, arguments.reference_steps)
    kept(
        REFERENCE,
        lambda: timed(partial(in_flight, operators, given.starts, slow, arguments.max_atoms)),
    )
    ways, missing = ways_of(problem, given, arguments), dict[str, str]()
    for repeat in range(arguments.repeats):
        for way in turned(list(ways), repeat):
            try:
                kept(f"{way} #{repeat}", partial(timed, ways[way]))
            except NotInstalled as error:
                missing[way] = str(error)
    print_table(name, arguments, kept, ways, missing, operators)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser)
    compare_each(parser, compare)


if __name__ == "__main__":
    main()
