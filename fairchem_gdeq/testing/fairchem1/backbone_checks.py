"""What every fairchem 1 backbone must pass, as numbers: for tests and ``benchmarks``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.fields import OCPForceField, forces_of
from fairchem_gdeq.fairchem1.frames import FramedEdges
from fairchem_gdeq.fairchem1.scn import SCN
from fairchem_gdeq.frozen.forward import backbone_of
from fairchem_gdeq.frozen.patching import installed
from fairchem_gdeq.relax import Operator, Structures
from fairchem_gdeq.testing.fairchem1 import backbones
from fairchem_gdeq.testing.fields import central_differences
from fairchem_gdeq.testing.precision import double_precision

SCALE = 2.0  # what ``denorm`` does in these checks, so that forgetting it shows


@dataclass(frozen=True)
class Row:
    """What one backbone scored.

    Attributes:
        start: largest force difference from the unmodified model at X_0, over the largest force, in
            double precision; the model is given our frames where it would draw them at random.
        moved: the same 0.15 Angstrom away, on the graph and frames of X_0.
        spread: the same between two evaluations of the unmodified model, single precision.
        shipped: relative error of the unmodified model's own VJP against central differences.
        derivative: that of the frozen field, double precision.
        cost: time of one VJP with parameter gradients over that of one force evaluation, float32.
    """

    start: float
    moved: float
    spread: float
    shipped: float
    derivative: float
    cost: float


def denorm(forces: Tensor) -> Tensor:
    """A normalizer."""
    return SCALE * forces


def field_of(name: str, data: Batch, double: bool = False) -> OCPForceField:
    """The frozen field of a random model."""
    return OCPForceField.frozen(backbones.model(name, double), data, denorm)


def unmodified(
    model: nn.Module,
    data: Batch,
    positions: Tensor | None = None,
    field: OCPForceField | None = None,
) -> Tensor:
    """The model's own forces [n, 3], with nothing of ours in between.

    Of ``field`` at most the frames of its edges, where the model would draw them at random.
    """
    data = data.clone()
    data.pos = data.pos if positions is None else positions
    backbone, chosen = backbone_of(model), contextlib.nullcontext()
    if field is not None and hasattr(backbone, "_init_edge_rot_mat"):
        vectors = field.graph.vectors(data.pos, data.cell)
        frames = FramedEdges.wigner(field.graph, vectors, 1)[:, 1:, 1:]
        if isinstance(field.graphs, SCN):
            frames = frames[field.graphs.order(field.graph)]
        chosen = installed(backbone, "_init_edge_rot_mat", lambda *args: frames)
    with torch.no_grad(), chosen:
        return denorm(forces_of(model(data))).detach()


def operator_of(field: OCPForceField, alpha: float = 1.0) -> Operator:
    """All atoms free, no drift removed."""
    batch = field.batch
    structures = Structures(
        batch=batch.batch,
        free=torch.ones_like(batch.batch, dtype=torch.bool),
        masses=torch.ones_like(batch.pos[:, 0]),
        cell=batch.cell,
        pbc=torch.ones(len(batch.natoms), 3, dtype=torch.bool, device=batch.pos.device),
    )
    return Operator.build(field, structures, alpha, remove_drift=False)


def nudged(data: Batch, length: float, field: OCPForceField, seed: int = 0) -> Tensor:
    """Positions with every atom ``length`` (Angstrom) away, or less if an edge would change."""
    step = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(seed)).to(data.pos)
    step = length * step / step.norm(dim=-1, keepdim=True)
    while field.edges_changed(data.pos + step).any():
        step = step * 0.8
    return data.pos + step


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def force_differences(name: str, double: bool = False) -> tuple[float, float, float]:
    """``Row.start``, ``Row.moved`` and ``Row.spread``."""
    with double_precision() if double else contextlib.nullcontext():
        data = backbones.batch(backbones.slabs(), double)
        field = field_of(name, data, double)
        plain, again = unmodified(field.model, data), unmodified(field.model, data)
        start, moved = (
            relative(field(x).detach(), unmodified(field.model, data, x, field))
            for x in (data.pos, nudged(data, 0.15, field))
        )
        return start, moved, relative(again, plain)


@cache
def derivative_errors(name: str) -> tuple[float, float]:
    """``Row.derivative`` and ``Row.shipped``: all components, of what the forces contribute.

    The step is shorter for EquiformerV2, whose radial functions are Gaussians 0.02 Angstrom wide.
    """
    step = 5e-7 if name.startswith("EquiformerV2") else 1e-5
    with double_precision():
        data = backbones.batch(backbones.structures(name), double=True)
        field = field_of(name, data, double=True)
        operator = operator_of(field)
        lam = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0))
        numeric = central_differences(operator.forces, data.pos, lam, step)
        analytic = operator.vjp(data.pos, lam) - lam

        positions = data.pos.clone().requires_grad_(True)
        again = data.clone()
        again.pos = positions
        torch.manual_seed(0)
        out = denorm(forces_of(field.model(again)))
        # Where checkpointing cuts it all, or a head keeps nothing of its forces, there is none.
        shipped = torch.full_like(lam, torch.nan)
        if out.requires_grad:
            with contextlib.suppress(RuntimeError):
                (shipped,) = torch.autograd.grad(out, positions, lam)
        return tuple(
            float((found - numeric).norm() / numeric.norm()) for found in (analytic, shipped)
        )


def cost(name: str, repeats: int = 5) -> float:
    """``Row.cost``: medians."""
    operator = operator_of(field_of(name, backbones.batch(backbones.slabs())))
    x = operator.field.batch.pos
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for kept, run in zip(times, (_forward, _vjp), strict=True):
            started = time.perf_counter()
            run(operator, x)
            kept.append(time.perf_counter() - started)
    forward, vjp = (sorted(kept[1:])[repeats // 2] for kept in times)
    return vjp / forward


def _forward(operator: Operator, positions: Tensor) -> None:
    with torch.no_grad():
        operator(positions)


def _vjp(operator: Operator, positions: Tensor) -> None:
    operator.vjp(positions, torch.ones_like(positions), accumulate=True)


def measure(name: str) -> Row:
    """One row of the table."""
    derivative, shipped = derivative_errors(name)
    start, moved, _ = force_differences(name, double=True)
    spread = force_differences(name)[2]
    return Row(start, moved, spread, shipped, derivative, cost(name))
