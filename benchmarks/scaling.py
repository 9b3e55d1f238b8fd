"""Seconds and peak memory of a training step against the number of atoms and of structures.

python -m benchmarks.scaling                                # on a GPU with --device cuda
python -m benchmarks.scaling --cells 2 3 --batches 1 2 --repeats 1 --png scaling.png

Structures are cubic supercells of perfect silicon, of 8 n^3 atoms, with every atom shifted at random;
the target is the perfect crystal. A step is one of G-DEQ with the loss, the solver and the adjoint of
configs/si, without the forces' update. Against the number of structures they all have 64 atoms.

Each case runs in a process of its own, after a VJP that does not count. "Extra" is the peak of the
resident set (on a GPU, of what is allocated) above what was there before the step, measured apart from
the times, because freed memory is then given back at once, which takes time. Exponents are fitted to
medians: seconds ~ atoms^p. The number of evaluations differs from case to case, so there is one of the
seconds per evaluation too, where evaluations and VJPs count alike.

What full BPTT would need is extrapolated: its stored graph is measured for few steps of few cells
(--stored and --unrolled), and the fit of a power law taken to the largest structure and to as many
steps as the configs of silicon unroll.

What is measured is kept in --folder; the same command goes on from there. Sizes come by turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch
from torch import Tensor

from benchmarks.peaks import GIVE_BACK, in_new_process, measure
from benchmarks.peers.kept import Kept, Measured
from benchmarks.peers.numbers import exponent, line, spread
from fairchem_gdeq.api.potential import load_potential
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import GDEQ, LBFGS, LogDeltaQ, Operator
from fairchem_gdeq.training.memory import peak_mb, reset_peak

ROOT = Path(__file__).parents[1]
LATTICE = 5.463  # Angstrom, that of the silicon data
SMALL = 2  # cells along each direction of the structures that batches are made of
MAX_UNROLL = 75  # steps of BPTT in configs/si/base.yaml
HEADER = (
    *("atoms", "structures", "evaluations", "VJPs", "adjoints used", "wall s per step"),
    *("CPU s per step", "extra MB"),
)


def case(
    cells: int, structures: int, arguments: argparse.Namespace
) -> tuple[Operator, Tensor, Tensor]:
    """Operator, X_0 and target [n, 3] (Angstrom) of perturbed supercells."""
    potential = load_potential(arguments.base, device=arguments.device)
    potential.model.requires_grad_(True)
    random, rows = np.random.default_rng(0), []
    perfect = bulk("Si", "diamond", a=LATTICE, cubic=True) * (cells, cells, cells)
    for k in range(structures):
        start = perfect.copy()
        start.positions += random.normal(scale=arguments.shift, size=start.positions.shape)
        rows.append(potential.row(start, k, perfect).get_example(0))
    batch = atomicdata_list_to_batch(rows).to(potential.device)
    operator = IS2RS(alpha=0.05).operator(potential.model, potential.tasks, batch)
    return operator, batch.pos, batch.pos_relaxed


def one_step(cells: int, structures: int, arguments: argparse.Namespace) -> Measured:
    """Seconds and extra peak memory (MB) of one step, to be the first of its process."""
    operator, start, target = case(cells, structures, arguments)
    signal = GDEQ(loss=LogDeltaQ(), solver=LBFGS(), horizon=arguments.horizon)
    operator.vjp(start, torch.ones_like(start)).sum().item()  # waits for a GPU
    gc.collect()
    reset_peak()
    before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    report = signal(operator, start, target)
    if start.is_cuda:
        torch.cuda.synchronize()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "extra_mb": peak_mb() - before,
        "atoms": len(start),
        "structures": structures,
        "evaluations": float(report.evaluations.double().mean()),
        "vjps": float(report.vjps.double().mean()),
        "contributing": int(report.contributing.sum()),
    }


def stored_graph(cells: int, steps: int, arguments: argparse.Namespace) -> Measured:
    """Extra peak memory (MB) of BPTT's graph of one structure, to be the first of its process."""
    operator, start, _ = case(cells, 1, arguments)
    found = measure((operator.field.model, operator, start), "stored_graph", steps)
    return {"atoms": len(start), "steps": steps, "extra_mb": found["extra_mb"]}


def extrapolate(found: Sequence[Measured], atoms: int, steps: int) -> str:
    """A sentence: the power law of stored graphs, its worst point, and what it says of a larger one."""
    sizes = np.log([[1.0 * each["atoms"], each["steps"]] for each in found])
    measured = np.log([each["extra_mb"] for each in found])
    design = np.column_stack([np.ones(len(found)), sizes])
    (scale, p, q), *_ = np.linalg.lstsq(design, measured, rcond=None)
    worst = float(np.expm1(np.abs(design @ [scale, p, q] - measured).max()))
    wanted = float(np.exp(scale + p * np.log(atoms) + q * np.log(steps)))
    return (
        f"stored graph of BPTT: {np.exp(scale):.3f} MB atoms^{p:.2f} steps^{q:.2f}, within {worst:.1%} "
        f"of each of {len(found)} measured; so {wanted / 1e3:.0f} GB for {atoms} atoms over {steps} steps"
    )


def median(runs: Sequence[Measured], key: str) -> float:
    """Of a number of all repeats."""
    return statistics.median(run[key] for run in runs)


def row(runs: Sequence[Measured], memory: Measured) -> str:
    """One of the table."""
    first = runs[0]
    entries = (
        *(str(first["atoms"]), str(first["structures"])),
        *(f"{first['evaluations']:.1f}", f"{first['vjps']:.1f}", str(first["contributing"])),
        *(spread([run[clock] for run in runs]) for clock in ("wall", "cpu")),
        f"{memory['extra_mb']:.0f}",
    )
    return line(*entries)


def fitted(
    by_size: Sequence[tuple[float, Sequence[Measured], Measured]],
) -> dict[str, tuple[float, float]]:
    """Exponents and their errors, by what grows with the size."""
    sizes = [size for size, _, _ in by_size]
    seconds = [median(runs, "wall") for _, runs, _ in by_size]
    work = [runs[0]["evaluations"] + runs[0]["vjps"] for _, runs, _ in by_size]
    curves = {
        "seconds per step": seconds,
        "seconds per evaluation": [s / n for s, n in zip(seconds, work, strict=True)],
        "extra memory": [memory["extra_mb"] for _, _, memory in by_size],
    }
    # Small cases may stay within what was allocated before: no memory is no point of a power law.
    return {name: exponent(sizes, values) for name, values in curves.items() if min(values) > 0}


def draw(
    path: str, curves: dict[str, Sequence[tuple[float, Sequence[Measured], Measured]]]
) -> None:
    """A picture of both tables, logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(4 * len(curves), 6), squeeze=False)
    for column, (of, points) in zip(axes.T, curves.items(), strict=True):
        sizes = [size for size, _, _ in points]
        column[0].loglog(sizes, [median(runs, "wall") for _, runs, _ in points], "o-")
        column[0].set_ylabel("s per step")
        column[1].loglog(sizes, [memory["extra_mb"] for _, _, memory in points], "o-")
        column[1].set_ylabel("extra MB")
        column[1].set_xlabel(of)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables and exponents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen_all_frames.pt"))
    parser.add_argument("--cells", type=int, nargs="*", default=[2, 3, 4, 5, 6], help="n of 8 n^3")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--stored", type=int, nargs="*", default=[2, 3, 4], help="n of 8 n^3")
    parser.add_argument("--unrolled", type=int, nargs="*", default=[5, 10, 20], help="steps")
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--shift", type=float, default=0.1, help="standard deviation, Angstrom")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default="runs/peers", help="where measurements are kept")
    parser.add_argument("--png", help="a picture of the tables")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, number = arguments.one[0], int(arguments.one[1])
        torch.set_num_threads(arguments.threads)
        if kind.isdigit():
            print(json.dumps(stored_graph(int(kind), number, arguments)))
            return
        sizes = (number, 1) if kind == "cells" else (SMALL, number)
        print(json.dumps(one_step(*sizes, arguments)))
        return
    keys = ("base", "horizon", "shift", "device", "threads")
    settings = {key: getattr(arguments, key) for key in keys}
    kept = Kept(Path(arguments.folder) / "scaling.jsonl", settings)
    kinds = {"cells": arguments.cells, "batch": arguments.batches}
    for repeat in range(arguments.repeats):
        for kind, numbers in kinds.items():
            for n in numbers:
                kept(f"{kind} {n} #{repeat}", lambda k=kind, n=n: in_new_process(k, n, {}))
    curves = {}
    for (kind, numbers), of in zip(kinds.items(), ("atoms", "structures"), strict=True):
        points = []
        print("\n| " + " | ".join(HEADER) + " |\n" + "|---:" * len(HEADER) + "|")
        for n in numbers:
            memory = kept(f"{kind} {n} memory", lambda k=kind, n=n: in_new_process(k, n, GIVE_BACK))
            runs = [kept.known[f"{kind} {n} #{k}"] for k in range(arguments.repeats)]
            points.append((runs[0][of], runs, memory))
            print(row(runs, memory), flush=True)
        if len(points) > 1:
            curves[of] = points
            for name, (power, error) in fitted(points).items():
                print(f"\n{name} ~ {of}^{power:.2f} (standard error {error:.2f})")
    graphs = [
        kept(f"stored {n} {k}", lambda n=n, k=k: in_new_process(str(n), k, GIVE_BACK))
        for n in arguments.stored
        for k in arguments.unrolled
    ]
    if len(arguments.stored) > 1 and len(arguments.unrolled) > 1:
        print("\n| atoms | steps | stored graph, MB |\n|---:|---:|---:|")
        for each in graphs:
            print(f"| {each['atoms']} | {each['steps']} | {each['extra_mb']:.0f} |")
        print(f"\n{extrapolate(graphs, 8 * max(arguments.cells) ** 3, MAX_UNROLL)}")
    if arguments.png and curves:
        draw(arguments.png, curves)


if __name__ == "__main__":
    main()
