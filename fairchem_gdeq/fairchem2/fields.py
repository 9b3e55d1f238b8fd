"""Any fairchem 2 model with direct forces as a ``ForceField``, its neighbour graph frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.graph.compute import generate_graph
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor, nn

SKIN_SEARCH = 0.5  # Angstrom beyond the cutoff where ``skin`` looks for pairs about to enter
NODE_KEYS = ("pos", "atomic_numbers", "fixed", "tags")
GRAPH_KEYS = ("cell", "pbc", "natoms", "charge", "spin", "nedges")


def hydra_model(module: nn.Module) -> HydraModel:
    """The model inside any number of DDP and EMA wrappers.

    Raises:
        TypeError: there is no fairchem 2 model inside.
    """
    while not hasattr(module, "backbone"):
        if not hasattr(module, "module"):
            raise TypeError(
                f"expected a fairchem 2 model with a backbone and heads, got {type(module).__name__}"
            )
        module = module.module
    return module


def force_task(tasks: list[Task]) -> Task:
    """The one task that predicts forces.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [task for task in tasks if task.property == "forces"]
    if len(found) != 1:
        names = [task.name for task in tasks]
        raise ValueError(f"expected exactly one task with property forces, found {found or names}")
    return found[0]


def require_direct_forces(model: HydraModel) -> None:
    """Refuse a model whose forces are the gradient of its energy.

    Raises:
        ValueError: says why and what to do.
    """
    config = getattr(model.backbone, "regress_config", None)
    if config is not None and not config.direct_forces:
        raise ValueError(
            f"{type(model.backbone).__name__} computes forces as the gradient of its energy "
            "(direct_forces: false). G-DEQ differentiates the forces themselves, which for such a "
            "model takes second derivatives of the energy at every step and is not supported. "
            "Use a direct-force model: direct_forces: true with a force head such as "
            "Linear_Force_Head, for example a *-direct checkpoint."
        )


def _with_positions(batch: AtomicData, positions: Tensor) -> AtomicData:
    """A shallow copy at other positions; models add keys to what they are given."""
    data = copy.copy(batch)
    data.__keys__ = set(batch.__keys__)
    data.pos = positions
    return data


@contextmanager
def _graph_given(backbone: nn.Module) -> Iterator[None]:
    """Let the backbone take the graph from the batch instead of building its own."""
    before = getattr(backbone, "otf_graph", None)
    if before is None:  # a model that has no graph
        yield
        return
    backbone.otf_graph = False
    try:
        yield
    finally:
        backbone.otf_graph = before


@contextmanager
def _one_map(device: torch.device) -> Iterator[None]:
    """The same random numbers at every evaluation.

    eSCN-type models draw the roll of each edge's frame at random in every forward pass; forces hardly
    depend on it, but a fixed point and its adjoint need one map, and a resumed run the same one.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def build_graph(backbone: nn.Module, batch: AtomicData, widen: float = 0.0) -> AtomicData:
    """The batch with the graph that fairchem's own builder makes for the backbone at its positions.

    Positions may lie outside the cell: the builder sees them wrapped, and the offsets are corrected
    so that the edge vectors belong to the positions as given.
    """
    with torch.no_grad():
        pos = batch.pos.detach()
        pbc = torch.ones_like(batch.pbc) if backbone.always_use_pbc else batch.pbc
        fraction = torch.linalg.solve(
            batch.cell[batch.batch].double().transpose(-1, -2), pos.double().unsqueeze(-1)
        ).squeeze(-1)
        wrap = (-fraction.floor() * pbc[batch.batch]).to(pos.dtype)
        shift = torch.einsum("ni,nij->nj", wrap, batch.cell[batch.batch])
        graph = generate_graph(
            _with_positions(batch, pos + shift),
            cutoff=backbone.cutoff + widen,
            max_neighbors=backbone.max_neighbors,
            enforce_max_neighbors_strictly=backbone.enforce_max_neighbors_strictly,
            radius_pbc_version=backbone.radius_pbc_version,
            pbc=pbc,
        )
        edges, offsets = graph["edge_index"], graph["cell_offsets"]
        out = _with_positions(batch, pos)
        out.edge_index = edges
        out.cell_offsets = offsets.to(pos.dtype) + wrap[edges[0]] - wrap[edges[1]]
        out.nedges = torch.bincount(batch.batch[edges[1]], minlength=len(batch.natoms))
    return out


def select_structures(batch: AtomicData, keep: Tensor) -> AtomicData:
    """The structures where the mask [s] holds, with their part of the graph."""
    atoms = keep[batch.batch]
    number = atoms.long().cumsum(0) - 1
    edges = keep[batch.batch[batch.edge_index[1]]]
    data = _with_positions(batch, batch.pos)
    for key in NODE_KEYS:
        data[key] = batch[key][atoms]
    for key in GRAPH_KEYS:
        data[key] = batch[key][keep]
    data.edge_index = number[batch.edge_index[:, edges]]
    data.cell_offsets = batch.cell_offsets[edges]
    data.batch = (keep.long().cumsum(0) - 1)[batch.batch[atoms]]
    chosen = keep.tolist()
    for key in ("sid", "dataset"):
        if key in batch:
            data[key] = [v for v, kept in zip(batch[key], chosen, strict=True) if kept]
    return data


@dataclass(frozen=True)
class HydraForceField:
    """F(X; c) of a fairchem 2 model for one batch; a ``ForceField`` of ``fairchem_gdeq.relax``.

    Attributes:
        model: the bare model, without DDP or EMA wrappers.
        task: the force task; its normalizer turns outputs into eV/Angstrom.
        batch: structures with the frozen graph; positions in it are not used.
        live: build the graph anew at every evaluation, as a plain relaxation does.
    """

    model: HydraModel
    task: Task
    batch: AtomicData
    live: bool = False

    @classmethod
    def freeze(cls, model: HydraModel, tasks: list[Task], batch: AtomicData) -> HydraForceField:
        """The field with its graph built at the batch's positions.

        Raises:
            ValueError: the model is conservative, or no single force task is known.
        """
        require_direct_forces(model)
        keys = {*NODE_KEYS, *GRAPH_KEYS, "batch", "sid", "dataset", "edge_index", "cell_offsets"}
        data = _with_positions(batch, batch.pos)
        for key in set(data.__keys__) - keys:
            del data[key]
        return cls(model, force_task(tasks), data).refreeze(batch.pos)

    @property
    def has_graph(self) -> bool:
        """Whether the backbone works on a neighbour graph at all."""
        return getattr(self.model.backbone, "otf_graph", None) is not None

    @property
    def translation_invariant(self) -> bool:
        """True unless the backbone says that it reads absolute coordinates."""
        return getattr(self.model.backbone, "translation_invariant", True)

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3], eV/Angstrom."""
        data = _with_positions(self.batch, positions)
        if self.live and self.has_graph:
            data = build_graph(self.model.backbone, data)
            data.pos = positions
        with _graph_given(self.model.backbone), _one_map(positions.device):
            out = self.model(data)
        forces = out[self.task.name][self.task.property].view(-1, 3)
        return self.task.normalizer.denorm(forces)

    def select(self, structures: Tensor) -> HydraForceField:
        """The field of the structures where the mask [s] holds."""
        return replace(self, batch=select_structures(self.batch, structures))

    def refreeze(self, positions: Tensor) -> HydraForceField:
        """The field with its graph built at positions [n, 3], and held."""
        if not self.has_graph:
            return self
        data = _with_positions(self.batch, positions)
        return replace(self, batch=build_graph(self.model.backbone, data), live=False)

    def thaw(self) -> HydraForceField:
        """The field with its graph built anew at every evaluation."""
        return replace(self, live=True)

    def skin(self) -> Tensor:
        """How far from the cutoff the nearest pair distance is, per structure [s], Angstrom.

        No edge can enter or leave before two atoms have moved by this much together.
        """
        wide = build_graph(self.model.backbone, self.batch, widen=SKIN_SEARCH)
        source, target = wide.edge_index
        structure = wide.batch[target]
        shift = torch.einsum("ni,nij->nj", wide.cell_offsets, wide.cell[structure])
        distance = (wide.pos[source] - wide.pos[target] + shift).norm(dim=-1)
        gap = (distance - self.model.backbone.cutoff).abs()
        widest = gap.new_full((len(wide.natoms),), SKIN_SEARCH)
        return widest.scatter_reduce(0, structure, gap, "amin")

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa."""
        fresh = self.refreeze(positions).batch
        rows = [
            torch.cat([b.edge_index.T, b.cell_offsets.round().long()], dim=1)
            for b in (self.batch, fresh)
        ]
        edges, number = torch.unique(torch.cat(rows), dim=0, return_counts=True)
        lonely = edges[number == 1][:, 1]
        return torch.bincount(self.batch.batch[lonely], minlength=len(self.batch.natoms))
