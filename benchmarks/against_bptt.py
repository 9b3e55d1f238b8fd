"""CPU seconds of a training step of each signal, on the same batches.

python -m benchmarks.against_bptt                             # silicon, as configs/si/gdeq.yml sets it
python -m benchmarks.against_bptt oc25/gdeq_ti_smoke.yml      # slabs: BPTT unrolls up to 200 steps
python -m benchmarks.against_bptt --batches 3 alpha=0.02      # overrides of the config

Each batch of the training split is differentiated by every signal in turn, in another order each time,
from the same weights. The step is the signal's own: rollout, solve and gradient, without the update on
frames, which is the same for all. The ratios are of the same batch. They are seconds of the process,
not of the clock, so that what else the machine does counts little. All gradients are by the sweep, in
one process and one thread.

Beside them stand evaluations and VJPs per structure. BPTT has an evaluation for each plain step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.peers.numbers import turned
from benchmarks.training_step import Clock
from fairchem_gdeq.fairchem2.fields import hydra_model
from fairchem_gdeq.relax import Signal, SignalReport

CONFIGS = Path(__file__).parents[1] / "configs"
SIGNALS = ("bptt", "gdeq", "implicit")


def composed(config: str, overrides: Sequence[str]) -> DictConfig:
    """A config of the folder ``configs``."""
    folder, _, name = config.rpartition("/")
    with initialize_config_dir(str(CONFIGS / folder), version_base="1.1"):
        return compose(name, overrides=list(overrides))


def signals_of(config: str, overrides: Sequence[str]) -> dict[str, Signal]:
    """Each signal with the config's settings; spared structures would cost BPTT alone."""
    found = {}
    for name in SIGNALS:
        given = composed(config, [f"signal={name}", "spare=0", *overrides])
        found[name] = instantiate(given.runner.train_eval_unit.signal)
    return found


def per_structure(reports: Sequence[SignalReport]) -> str:
    """Means of evaluations and VJPs, and what diverged."""
    means = [
        torch.cat([getattr(report, name).double() for report in reports]).mean().item()
        for name in ("evaluations", "vjps", "diverged")
    ]
    return f"{means[0]:.1f} evaluations, {means[1]:.1f} VJPs, {means[2]:.0%} diverged"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="si/gdeq.yml")
    parser.add_argument("overrides", nargs="*", help="of the config")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--max-atoms", type=int, default=260, help="of a batch")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    overrides = [*arguments.overrides, f"max_atoms={arguments.max_atoms}", "job.device_type=CPU"]
    config = composed(arguments.config, overrides)
    unit = config.runner.train_eval_unit
    model = hydra_model(instantiate(unit.model)).eval()
    tasks, is2rs = instantiate(config.tasks), instantiate(unit.is2rs)
    loader = instantiate(config.train_loader)
    signals, clock = signals_of(arguments.config, overrides), Clock()
    reports: dict[str, list[SignalReport]] = {name: [] for name in signals}
    for turn, batch in zip(range(arguments.batches + 1), loader, strict=False):
        for name in turned(list(signals), turn):
            report = one_step(
                clock, name, signals[name], is2rs.operator(model, tasks, batch), batch
            )
            model.zero_grad(set_to_none=True)
            if turn:
                reports[name].append(report)
        if turn:
            times = ", ".join(
                f"{name} {values[-1]:.2f} s" for name, values in clock.seconds.items()
            )
            print(f"batch {turn} of {len(batch.natoms)} structures: {times}", flush=True)
    for name, values in clock.seconds.items():
        print(f"{name:10s} {statistics.mean(values[1:]):7.2f} s in the mean")
    for name, found in reports.items():
        print(f"{name:10s} per structure: {per_structure(found)}")
    for name in SIGNALS[1:]:
        clock.ratio("bptt", name, 1)
        both = [sum(clock.seconds[each][1:]) for each in ("bptt", name)]
        print(f"bptt / {name}, of the means: {both[0] / both[1]:.2f}")
    sizes = [len(report.diverged) for report in reports["gdeq"]]
    print(f"{sum(sizes)} structures in {len(sizes)} batches, median {statistics.median(sizes):g}")


def one_step(clock: Clock, name: str, signal: Signal, operator: Any, batch: Any) -> SignalReport:
    """The report of a signal's step, whose time goes under its name."""
    return clock(name, lambda: signal(operator, batch.pos, batch.pos_relaxed))


if __name__ == "__main__":
    main()
