"""CPU seconds of the parts of a training step on silicon, with and without what saves evaluations.

python -m benchmarks.training_step                    # eight structures of train_more, the shipped base
python -m benchmarks.training_step --memory 500MB --repeats 3
python -m benchmarks.training_step --compile          # and the same with a compiled backbone

Everything is taken in turn in one process, ``--repeats`` times after a first that does not count. They
are seconds of the process, not of the clock, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.units.mlip_unit.utils import load_inference_model, load_tasks
from torch import Tensor, nn

from fairchem_gdeq.data.is2rs import IS2RSDataset
from fairchem_gdeq.fairchem2.compiling import compile_backbone
from fairchem_gdeq.fairchem2.fields import force_task, hydra_model
from fairchem_gdeq.fairchem2.replay import ForceReplay, FrameBatches, forces_loss
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import GDEQ, GMRES, LBFGS, AdjointSolution, LogDeltaQ, Operator
from fairchem_gdeq.relax.linearised import Linearised

ROOT = Path(__file__).parents[1]
SILICON = GDEQ(loss=LogDeltaQ(), solver=LBFGS())  # configs/si/base.yaml
COMPILED, UPDATE = "compiled, ", "force update"
T = TypeVar("T")


@dataclass(frozen=True)
class Anew:
    """GMRES that evaluates the potential in every VJP."""

    def __call__(
        self, operator: Operator, positions: Tensor, g: Tensor, guess: Tensor | None = None
    ) -> AdjointSolution:
        """As ``Adjoint``."""
        assert isinstance(operator, Linearised)
        return GMRES()(operator.plain(), positions, g, guess)


@dataclass(frozen=True)
class Clock:
    """CPU seconds by name, in the order in which names first come.

    Attributes:
        seconds: of each name.
        before: what is put before names.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    before: str = ""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """What ``work`` returns; how long it took goes under the name."""
        started = time.process_time()
        out = work()
        self.seconds.setdefault(self.before + name, []).append(time.process_time() - started)
        return out

    def print(self, first: int) -> None:
        """Median and range of each name, without so many at first."""
        for name, values in self.seconds.items():
            kept = values[first:]
            print(
                f"{name:44s} {statistics.median(kept):7.2f} s  ({min(kept):.2f} to {max(kept):.2f})"
            )

    def ratio(self, new: str, old: str, first: int) -> None:
        """Median and range of the quotients of two names' times in the same turn."""
        pairs = zip(self.seconds[new][first:], self.seconds[old][first:], strict=True)
        ratios = [a / b for a, b in pairs]
        print(
            f"{new} / {old}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def gradient(model: nn.Module) -> Tensor:
    """All of a model's gradients as one vector; they are taken away."""
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(found) if found else torch.zeros(1)


def one_step(
    clock: Clock, model: nn.Module, operator: Operator, batch: AtomicData, signal: GDEQ, memory: str
) -> str:
    """The phases of ``GDEQ`` one by one; what came out, in a line."""
    start, target = batch.pos, batch.pos_relaxed
    old, new = replace(signal, adjoint=Anew()), replace(signal, guidance_memory=memory)
    path = clock("rollout", lambda: old.roll(operator, start, old.horizon))
    report = old.after(operator, path, target)
    settled = clock("solve", lambda: old.equilibrium(operator, report))
    assert settled is not None
    report = old.judge(settled, target, report)

    clock("sweep", lambda: old.steer(operator, path, target, report))
    swept = gradient(model)
    kept = clock("rollout, graphs kept", lambda: new.roll(operator, start, new.horizon))
    clock("sweep, graphs kept", lambda: new.steer(operator, kept, target, report))
    swept_new = gradient(model)

    clock("adjoint, evaluated in each VJP", lambda: old.sharpen(settled, target, None, report))
    implicit = gradient(model)
    ended = clock("adjoint, one linearisation", lambda: new.sharpen(settled, target, None, report))
    implicit_new = gradient(model)

    apart = [
        float((a - b).norm() / a.norm().clamp_min(1e-30))
        for a, b in ((swept, swept_new), (implicit, implicit_new))
    ]
    return (
        f"{len(batch.natoms)} structures, {int(report.spared.sum())} spared; per structure "
        f"{path.evaluations.tolist()} evaluations in the rollout, "
        f"{settled.solution.evaluations.tolist()} in the solve, {ended.vjps.tolist()} VJPs; "
        f"gradients differ by {apart[0]:.0e} (sweep) and {apart[1]:.0e} (adjoint)"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen_all_frames.pt"))
    parser.add_argument("--first", type=int, default=0, help="of the structures of train_more")
    parser.add_argument("--structures", type=int, default=8)
    parser.add_argument("--spare", type=float, default=0.5)
    parser.add_argument("--memory", default="4GB", help="guidance_memory where graphs are kept")
    parser.add_argument("--compile", action="store_true", help="takes minutes more")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = hydra_model(load_inference_model(arguments.base, return_checkpoint=False)).eval()
    model.requires_grad_(True)
    tasks = load_tasks(arguments.base)
    source = {"src": str(ROOT / "data/si/train_more"), "a2g_args": {"task_name": "si"}}
    rows, last = IS2RSDataset(source), arguments.first + arguments.structures
    batch = atomicdata_list_to_batch([rows[i] for i in range(arguments.first, last)])
    models = {"": model}
    if arguments.compile:
        models[COMPILED] = copy.deepcopy(model)
        compile_backbone(models[COMPILED])
    forces = ForceReplay(str(ROOT / "data/si/train_frames"), "si", 520)
    frames = FrameBatches(forces, force_task(tasks))
    signal, clock = replace(SILICON, spare=arguments.spare), Clock()
    for turn in range(arguments.repeats + 1):
        for before, each in models.items():
            timed = Clock(clock.seconds, before)
            operator = IS2RS().operator(each, tasks, batch)
            line = one_step(timed, each, operator, batch, signal, arguments.memory)
            given = frames(turn, batch, None)
            loss = partial(forces_loss, each, frames.task, given)
            timed(UPDATE, lambda loss=loss: loss().backward())
            each.zero_grad(set_to_none=True)
            if turn == 0:
                print(f"{before}{line}", flush=True)
    clock.print(1)
    clock.ratio("adjoint, one linearisation", "adjoint, evaluated in each VJP", 1)
    clock.ratio("rollout, graphs kept", "rollout", 1)
    clock.ratio("sweep, graphs kept", "sweep", 1)
    for name in [name for name in clock.seconds if COMPILED + name in clock.seconds]:
        clock.ratio(COMPILED + name, name, 1)


if __name__ == "__main__":
    main()
