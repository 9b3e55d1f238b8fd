"""What every backbone must pass, as numbers: for the tests and for ``python -m benchmarks.backbones``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch.overrides import TorchFunctionMode

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.graphs import EdgeList, Edges
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax.guidance import guidance_by_sweep
from fairchem_gdeq.relax.loss import delta_q
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.testing.fairchem2.backbones import model, structures, tasks
from fairchem_gdeq.testing.fields import central_differences
from fairchem_gdeq.testing.precision import double_precision


@dataclass(frozen=True)
class Row:
    """What one backbone scored.

    Attributes:
        forces: largest force difference from the unmodified model at X_0, over the largest force.
        spread: the same between two evaluations of the unmodified model, which rolls edge frames at
            random.
        derivative: relative error of the VJP against central differences, double precision.
        cost: time of one VJP with parameter gradients over that of one force evaluation, float32.
    """

    forces: float
    spread: float
    derivative: float
    cost: float


class _Rolls(TorchFunctionMode):
    """``torch.rand`` gives these numbers: the rolls of eSCN's edge frames, in turns."""

    def __init__(self, rolls: torch.Tensor) -> None:
        self.rolls = rolls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.rolls if func is torch.rand else func(*args, **(kwargs or {}))


def unmodified_forces(
    built: HydraModel, task: Task, batch: AtomicData, rolls: torch.Tensor | None = None
) -> torch.Tensor:
    """The model's own forces [n, 3], with nothing of ours in between; its random rolls if given."""
    chosen = contextlib.nullcontext() if rolls is None else _Rolls(rolls / (2 * torch.pi))
    with torch.no_grad(), chosen:
        return task.normalizer.denorm(built(batch.clone())[task.name]["forces"].view(-1, 3))


def force_differences(
    name: str, atoms: list | None = None, double: bool = False
) -> tuple[float, float]:
    """``Row.forces`` and ``Row.spread``, in single precision unless ``double``."""
    with double_precision() if double else contextlib.nullcontext():
        data = small.batch(structures(name) if atoms is None else atoms, double=double)
        built, (task,) = model(name, double, data), tasks(name)
        field = HydraForceField.frozen(built, [task], data)
        rolls = field.batch.roll if isinstance(field.graphs, EdgeList) else None
        plain = unmodified_forces(built, task, data, rolls)
        ours = field(data.pos).detach()
        again = [unmodified_forces(built, task, data) for _ in range(2)]
    pairs = ((ours, plain), again)
    return tuple(float((a - b).abs().max() / plain.abs().max()) for a, b in pairs)


def derivative_error(name: str, atoms: list | None = None, step: float = 1e-5) -> float:
    """``Row.derivative``: all components, of the part that the forces contribute."""
    with double_precision():
        data = small.batch(structures(name) if atoms is None else atoms)
        operator = IS2RS(alpha=1.0, cap=None).operator(model(name, True, data), tasks(name), data)
        lam = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0))
        free = operator.structures.free[:, None]
        own = torch.where(free, lam, 0.0)
        analytic = operator.vjp(data.pos, lam) - own
        numeric = central_differences(operator.forces, data.pos, lam, step)
        numeric = torch.where(free, numeric, 0.0)
        return float((analytic - numeric).norm() / numeric.norm())


def cost(name: str, repeats: int = 5) -> float:
    """``Row.cost``: medians."""
    data = small.batch(structures(name), double=False)
    operator = IS2RS().operator(model(name, False, data), tasks(name), data)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for kept, run in zip(times, (_forward, _vjp), strict=True):
            started = time.perf_counter()
            run(operator, data.pos)
            kept.append(time.perf_counter() - started)
    forward, vjp = (sorted(kept[1:])[repeats // 2] for kept in times)
    return vjp / forward


def _forward(operator, positions):
    with torch.no_grad():
        operator(positions)


def _vjp(operator, positions):
    operator.vjp(positions, torch.ones_like(positions), accumulate=True)


def measure(name: str) -> Row:
    """One row of the table."""
    return Row(*force_differences(name), derivative_error(name), cost(name))


def frozen(name: str) -> str:
    """In a few words, what is constant while positions move."""
    data = small.batch(structures(name), double=False)
    graphs = HydraForceField.frozen(model(name, False, data), tasks(name), data).graphs
    if graphs is None:
        return "nothing: no neighbours"
    if isinstance(graphs, EdgeList):
        return "pairs, images, frame rolls"
    if isinstance(graphs, Edges):
        return "pairs, images"
    config = graphs.backbone
    parts = ["pairs", "images", "slots"]
    parts += [] if config.molecular_graph_cfg.knn_soft else ["ranks"]
    if graphs.all_pairs and config.global_cfg.use_node_path:
        parts.append("nearest images")
    return ", ".join(parts)


def two_steps(name: str) -> tuple[float, float]:
    """Mean Delta Q at X_K before and after two Adam steps on its own guidance gradient."""
    data = small.batch(structures(name), double=False)
    built = model(name, False, data)
    target = data.pos + 0.05 * torch.randn(data.pos.shape, generator=torch.manual_seed(1))
    operator = IS2RS(alpha=0.01).operator(built, tasks(name), data)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return delta_q(x, target, operator.structures, operator.pin)

    optimizer = torch.optim.Adam(built.parameters(), lr=3e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(guidance_by_sweep(operator, data.pos, 3, loss, 1.0)[2])
        reached = [p.grad for p in built.parameters() if p.grad is not None]
        assert reached and all(torch.isfinite(g).all() for g in reached)
        optimizer.step()
    return losses[0], losses[-1]
