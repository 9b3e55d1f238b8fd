"""Peak memory and time of the guidance gradient against the horizon K.

    python benchmarks/guidance_memory.py                    # 216 atoms, the shipped eSEN base
    python benchmarks/guidance_memory.py --structure divac1_648 --sweep 5 20 --stored

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
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(base: str, structure: str, method: str, horizon: int, threads: int) -> dict[str, float]:
    """Extra peak memory (MB) and seconds of one guidance gradient; runs in its own process."""
    import torch
    from ase.db import connect
    from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
    from fairchem.core.units.mlip_unit.utils import load_inference_model, load_tasks

    from fairchem_gdeq.fairchem2.fields import hydra_model
    from fairchem_gdeq.fairchem2.task import IS2RS
    from fairchem_gdeq.memory import peak_mb, reset_peak
    from fairchem_gdeq.relax import delta_q
    from fairchem_gdeq.relax.guidance import GUIDANCE_GRADIENTS

    torch.set_num_threads(threads)
    model = hydra_model(load_inference_model(base, return_checkpoint=False)).eval()
    with connect(ROOT / "data/si/large/data.aselmdb", type="aselmdb", readonly=True) as rows:
        atoms = next(r for r in rows.select() if r.data["sid"] == structure).toatoms()
    batch = atomicdata_list_to_batch([AtomicData.from_ase(atoms, task_name="si")])
    operator = IS2RS().operator(model, load_tasks(base), batch)
    target = batch.pos + 0.1 * torch.randn(
        batch.pos.shape, generator=torch.Generator().manual_seed(0)
    )
    operator.vjp(batch.pos, torch.ones_like(batch.pos), accumulate=True)
    model.zero_grad(set_to_none=False)
    gc.collect()
    reset_peak()
    before = peak_mb()
    started = time.perf_counter()
    GUIDANCE_GRADIENTS[method](
        operator,
        batch.pos,
        horizon,
        lambda x: delta_q(x, target, operator.structures, operator.pin),
        1.0,
    )
    return {"seconds": time.perf_counter() - started, "extra_mb": peak_mb() - before}


# Freed memory goes back at once: else what the resident set keeps of it, more the longer a process
# runs, counts as used. It costs time, so times are taken without.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def case(
    arguments: argparse.Namespace, method: str, horizon: int, environment: dict[str, str]
) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, __file__, "--one", method, str(horizon)]
    command += ["--base", arguments.base, "--structure", arguments.structure]
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        raise SystemExit(f"{method} at K={horizon} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen.pt"))
    parser.add_argument("--structure", default="vac_216", help="sid in data/si/large")
    parser.add_argument("--sweep", type=int, nargs="*", default=[5, 20, 40, 140])
    parser.add_argument("--stored", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--time-at", type=int, default=20, help="K of the time comparison")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, horizon = arguments.one
        out = measure(arguments.base, arguments.structure, method, int(horizon), arguments.threads)
        print(json.dumps(out))
        return
    print(f"{arguments.structure}, {arguments.threads} threads, base {Path(arguments.base).name}")
    print("method          K   extra MB")
    extra: dict[tuple[str, int], float] = {}
    for method, horizons in (("sweep", arguments.sweep), ("stored_graph", arguments.stored)):
        for k in horizons:
            extra[method, k] = case(arguments, method, k, GIVE_BACK)["extra_mb"]
            print(f"{method:12s} {k:4d} {extra[method, k]:10.0f}", flush=True)
    if {("sweep", 5), ("sweep", 140)} <= extra.keys():
        print(f"sweep, memory K=140 / K=5: {extra['sweep', 140] / extra['sweep', 5]:.2f} (bar 1.2)")
    if arguments.repeats:
        ratios = []
        for _ in range(arguments.repeats):
            pair = [case(arguments, m, arguments.time_at, {}) for m in ("sweep", "stored_graph")]
            ratios.append(pair[0]["seconds"] / pair[1]["seconds"])
        ratios.sort()
        print(
            f"time sweep / stored graph at K={arguments.time_at}: median "
            f"{ratios[len(ratios) // 2]:.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} (bar 1.35)"
        )


if __name__ == "__main__":
    main()
