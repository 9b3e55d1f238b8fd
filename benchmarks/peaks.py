"""Peak memory and time of the guidance gradient against the horizon K: what the benchmarks share.

Each case runs in a process of its own, after one warm-up VJP, so that its peak is not hidden by an
earlier one. "Extra" is the peak of the resident set above what was resident before the gradient.
Times of the two methods at the same K are taken in turn, several times, and compared pair by pair.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairchem_gdeq.relax import Operator, delta_q
from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS
from fairchem_gdeq.relax.kept import memory_of
from fairchem_gdeq.training.memory import peak_mb, reset_peak

# Freed memory goes back at once: else what the resident set keeps of it, more the longer a process
# runs, counts as used. It costs time, so times are taken without.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Case = tuple[nn.Module, Operator, Tensor]  # the model, the operator and X_0 [n, 3]


def measure(case: Case, method: str, horizon: int, memory: float = 0) -> dict[str, float]:
    """Extra peak memory (MB) and seconds of one guidance gradient, to be the first of its process.

    Args:
        memory: bytes that the sweep may use for graphs that it keeps.
    """
    model, operator, start = case
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    target = start + 0.1 * noise
    operator.vjp(start, torch.ones_like(start), accumulate=True)
    model.zero_grad(set_to_none=False)
    gc.collect()
    reset_peak()
    before = peak_mb()
    started = time.perf_counter()
    GUIDANCE_GRADIENTS[method](
        operator,
        start,
        horizon,
        lambda x: delta_q(x, target, operator.structures, operator.pin),
        1.0,
        **({"memory": int(memory)} if memory else {}),
    )
    return {"seconds": time.perf_counter() - started, "extra_mb": peak_mb() - before}


def in_new_process(
    kind: str, number: int, environment: dict[str, str], *more: str
) -> dict[str, float]:
    """This program again with ``--one KIND NUMBER ...``: the last line that it prints is the answer."""
    program = sys.modules["__main__"].__spec__.name
    command = [sys.executable, "-m", program, *sys.argv[1:], "--one", kind, str(number), *more]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        raise SystemExit(f"{kind} {number} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(parser: argparse.ArgumentParser, case_of: Callable[[argparse.Namespace], Case]) -> None:
    """The program: ``case_of`` makes a case of the parsed arguments, to which ours are added."""
    parser.add_argument("--sweep", type=int, nargs="*", default=[5, 20, 40, 140])
    parser.add_argument("--stored", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--time-at", type=int, default=20, help="K of the time comparison")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budgets", nargs="*", default=[], help="guidance_memory, such as 500MB")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, horizon, *budget = arguments.one
        torch.set_num_threads(arguments.threads)
        memory = memory_of("guidance_memory", budget[0]) if budget else 0
        print(json.dumps(measure(case_of(arguments), method, int(horizon), memory)))
        return
    print("method          K   extra MB")
    extra: dict[tuple[str, int], float] = {}
    for method, horizons in (("sweep", arguments.sweep), ("stored_graph", arguments.stored)):
        for k in horizons:
            extra[method, k] = in_new_process(method, k, GIVE_BACK)["extra_mb"]
            print(f"{method:12s} {k:4d} {extra[method, k]:10.0f}", flush=True)
    for budget in arguments.budgets:
        peak = in_new_process("sweep", arguments.time_at, GIVE_BACK, budget)["extra_mb"]
        print(f"sweep, {budget} {arguments.time_at:4d} {peak:10.0f}", flush=True)
    if {("sweep", 5), ("sweep", 140)} <= extra.keys():
        print(f"sweep, memory K=140 / K=5: {extra['sweep', 140] / extra['sweep', 5]:.2f} (bar 1.2)")
    if arguments.repeats:
        ratios = []
        for _ in range(arguments.repeats):
            pair = [in_new_process(m, arguments.time_at, {}) for m in ("sweep", "stored_graph")]
            ratios.append(pair[0]["seconds"] / pair[1]["seconds"])
        ratios.sort()
        print(
            f"time sweep / stored graph at K={arguments.time_at}: median "
            f"{ratios[len(ratios) // 2]:.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (bar 1.35)"
        )
