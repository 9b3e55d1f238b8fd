"""Predictions per second in flight against one-at-a-time ASE FIRE on the same checkpoint:
``python -m benchmarks.bulk_relaxation``.

Every repeat relaxes its own structures in several ways, by turns, to the same fmax: by ASE's FIRE with
fairchem's calculator; in flight as predictions are made (``--horizon`` plain steps, then L-BFGS);
in flight with L-BFGS alone whose guess of the Hessian adapts, down to a softer limit as well, and knows
bonds; and in flight with FIRE, which tells what batching alone gives.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from ase.optimize import FIRE
from fairchem.core import FAIRChemCalculator
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit import load_predict_unit
from fairchem.core.units.mlip_unit.api.inference import guess_inference_settings
from fairchem.core.units.mlip_unit.mlip_unit import Task
from fairchem.core.units.mlip_unit.utils import load_inference_model

from fairchem_gdeq import relax
from fairchem_gdeq.batching.bulk import Bulk
from fairchem_gdeq.data.is2rs import IS2RSDataset, collate
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.fields import HydraForceField, hydra_model
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import LBFGS, Relaxer


@dataclass(frozen=True)
class Timing:
    """How long it took to relax some structures: wall and CPU seconds, and how far they came."""

    wall: float
    cpu: float
    evaluations: float
    converged: float


def timed(relax: Callable[[], tuple[float, float]]) -> Timing:
    """Time of ``relax``, which gives evaluations per structure and the converged fraction."""
    wall, cpu = time.perf_counter(), time.process_time()
    evaluations, converged = relax()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu, evaluations, converged)


class ForcesAlone(FAIRChemCalculator):
    """For checkpoints without an energy, which ASE's optimizers ask for in order to log it."""

    def get_property(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """fairchem's, and an energy of zero where there is none."""
        if name == "energy" and name not in self.implemented_properties:
            return 0.0
        return super().get_property(name, *args, **kwargs)


def one_at_a_time(
    calculator: FAIRChemCalculator, rows: list[AtomicData], way: Relaxer
) -> tuple[float, float]:
    """ASE's FIRE, as its documentation has it."""
    evaluations, converged = 0, 0
    for row in rows:
        (atoms,) = row.to_ase()
        atoms.info |= {"charge": 0, "spin": 0}
        atoms.calc = calculator
        optimizer = FIRE(atoms, logfile=None)
        converged += bool(optimizer.run(fmax=way.fmax, steps=way.max_steps))
        evaluations += optimizer.nsteps + 1
    return evaluations / len(rows), converged / len(rows)


def in_flight(
    model: HydraModel,
    tasks: list[Task],
    rows: list[AtomicData],
    way: Relaxer,
    alpha: float,
    budget: int,
    device: str,
) -> tuple[float, float]:
    """The same rows through one stream."""

    def field_of(row: AtomicData) -> HydraForceField:
        return HydraForceField.unfrozen(model, tasks, row).on(device)

    bulk = Bulk(IS2RS(alpha=alpha, cap=0.1, relaxer=way), field_of, budget, device)
    for _ in bulk.relax(rows):
        pass
    return bulk.evaluations / bulk.done, bulk.converged / bulk.done


def main() -> None:
    """Print a line per repeat and way, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="data/si/base/esen.pt")
    parser.add_argument("--data", default="data/si/test")
    parser.add_argument("--structures", type=int, default=8, help="in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-atoms", type=int, default=1100, help="evaluated together")
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.05, help="of the plain steps")
    parser.add_argument("--fmax", type=float, default=0.02)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--eager",
        action="store_true",
        help="ASE without torch.compile, which fairchem's predictor uses by default",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="in flight too, as compile: true does; a first, untimed pass of each way compiles",
    )
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")

    dataset = IS2RSDataset({"src": args.data})
    needed = args.structures * args.repeats
    if needed > len(dataset):
        parser.error(f"{needed} structures asked for, {args.data} has {len(dataset)}")
    inference = guess_inference_settings("default")
    if args.eager:
        inference = replace(inference, compile=False)
    predictor = load_predict_unit(args.checkpoint, inference, device=args.device)
    tasks = [task for task in predictor.tasks.values() if task.property == "forces"]
    calculator = ForcesAlone(predictor, task_name=tasks[0].datasets[0])
    # As predictions load it: the predictor may have changed its own copy for inference.
    model = hydra_model(
        load_inference_model(args.checkpoint, use_ema=True, return_checkpoint=False)
    )
    model.to(args.device).eval()
    if args.compile:
        compile_backbone(model)
    ase_way = Relaxer(0, relax.FIRE(), fmax=args.fmax, max_steps=args.max_steps)
    ways = {
        f"in flight, {args.horizon} plain steps + L-BFGS, fixed guess": Relaxer(
            args.horizon, LBFGS(softest=None), args.fmax, args.max_steps
        ),
        "in flight, L-BFGS": Relaxer(0, LBFGS(), args.fmax, args.max_steps),
        "in flight, L-BFGS with softest=2.5": Relaxer(
            0, LBFGS(softest=2.5), args.fmax, args.max_steps
        ),
        "in flight, L-BFGS with softest=2.5, bonds=3.5": Relaxer(
            0, LBFGS(softest=2.5, bonds=3.5), args.fmax, args.max_steps
        ),
        "in flight, FIRE": ase_way,
    }
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(args.repeats):
        which = range(repeat * args.structures, (repeat + 1) * args.structures)

        def rows(which: range = which) -> list[AtomicData]:
            return [collate([dataset[i]]) for i in which]

        one_at_a_time(calculator, rows()[:1], Relaxer(max_steps=1))  # warm-up
        if args.compile and repeat == 0:
            for way in ways.values():
                in_flight(model, tasks, rows(), way, args.alpha, args.max_atoms, args.device)
        reference = timed(partial(one_at_a_time, calculator, rows(), ase_way))
        report(repeat, "ASE FIRE, one at a time", reference, args.structures)
        for name, way in ways.items():
            options = (way, args.alpha, args.max_atoms, args.device)
            found = timed(partial(in_flight, model, tasks, rows(), *options))
            report(repeat, name, found, args.structures)
            ratios[name].append((reference.wall / found.wall, reference.cpu / found.cpu))
    for name, values in ratios.items():
        for clock, found in zip(("wall", "CPU"), zip(*values, strict=True), strict=True):
            print(
                f"{name}: {statistics.mean(found):.2f} times ASE FIRE by {clock} time (min "
                f"{min(found):.2f}, max {max(found):.2f}, {len(found)} repeats, "
                f"{torch.get_num_threads()} threads)"
            )


def report(repeat: int, name: str, timing: Timing, structures: int) -> None:
    """One line."""
    print(
        f"{repeat} {name}: {structures / timing.wall:.4f} predictions/s ({structures / timing.cpu:.4f} "
        f"by CPU time), {timing.evaluations:.1f} evaluations/structure, {timing.converged:.0%} converged",
        flush=True,
    )


if __name__ == "__main__":
    main()
