"""Any fairchem 2 model with direct forces as a ``ForceField``, its neighbour graph frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor, nn

from fairchem_gdeq.fairchem2 import graphs
from fairchem_gdeq.fairchem2.families import graphs_of
from fairchem_gdeq.fairchem2.graphs import Graphs, with_positions
from fairchem_gdeq.fairchem2.supported import dataset_names, require_dataset, require_exact
from fairchem_gdeq.frozen.forward import evaluating, full_precision

KEPT = {
    *graphs.NODE_KEYS,
    *graphs.GRAPH_KEYS,
    *graphs.LIST_KEYS,
    "batch",
    "edge_index",
    "cell_offsets",
}


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


@contextmanager
def _one_map(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The same function at every evaluation, whatever mode and random state the caller left.

    Dropout, stochastic depth and the like are off: evaluation mode, given back afterwards. eSCN-type
    models draw the roll of each edge's frame at random even so; forces hardly depend on it, but a
    fixed point and its adjoint need one map, and a resumed run the same one. Autocast is off too.
    """
    devices = [device] if device.type == "cuda" else []
    with evaluating(model), full_precision(device), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


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
    def frozen(cls, model: HydraModel, tasks: list[Task], batch: AtomicData) -> HydraForceField:
        """The field with its graph built at the batch's positions.

        Raises:
            ValueError: as ``unfrozen``.
        """
        return cls.unfrozen(model, tasks, batch).freeze(batch.pos)

    @classmethod
    def unfrozen(cls, model: HydraModel, tasks: list[Task], batch: AtomicData) -> HydraForceField:
        """The field that builds its graph anew at every evaluation; none is built here.

        Raises:
            ValueError: the model cannot be differentiated exactly (conservative, or a setting that
                ``supported`` names), no single force task is known, it is not for these
                structures, or one of them is periodic and has a cell without volume.
        """
        require_exact(model)
        task = force_task(tasks)
        names = dataset_names(batch)
        require_dataset(model, task, names)
        # A merged mixture is for one composition only; it asks its own embeddings.
        there = next(model.parameters()).device
        asked = with_positions(batch, batch.pos).to(there, non_blocking=True)
        model.backbone.on_predict_check(asked)
        data = with_positions(batch, batch.pos)
        for key in set(data.__keys__) - KEPT:
            del data[key]
        if names is not None:
            data.dataset = names
        graphs.restate(data, data.natoms.tolist())
        if (family := graphs_of(model.backbone)) is not None:
            graphs.prepare(data, family.periodic(data))
        return cls(model, task, data, live=True)

    def on(self, device: torch.device | str) -> HydraForceField:
        """The field on another device, following its positions, without waiting for the device."""
        batch = with_positions(self.batch, self.batch.pos).to(device, non_blocking=True)
        return replace(self, batch=batch, live=True)

    @property
    def graphs(self) -> Graphs | None:
        """How the backbone's neighbours are frozen."""
        return graphs_of(self.model.backbone)

    @property
    def has_graph(self) -> bool:
        """Whether the backbone works on neighbours at all."""
        return self.graphs is not None

    @property
    def translation_invariant(self) -> bool:
        """True unless the backbone says that it reads absolute coordinates."""
        return getattr(self.model.backbone, "translation_invariant", True)

    @property
    def rotation_equivariant(self) -> bool:
        """Whether forces turn with a structure that is not periodic."""
        return self.graphs is not None and self.graphs.rotation_equivariant

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3], eV/Angstrom."""
        frozen = self.freeze(positions).batch if self.live else self.batch
        data = with_positions(frozen, positions)
        with graphs.given(self.graphs, data), _one_map(self.model, positions.device):
            out = self.model(data)
        forces = out[self.task.name][self.task.property].view(-1, 3)
        return self.task.normalizer.denorm(forces)

    def select(self, structures: Tensor) -> HydraForceField:
        """The field of the structures where the mask [s] holds."""
        return replace(self, batch=graphs.select_structures(self.batch, structures))

    def join(self, others: Sequence[HydraForceField]) -> HydraForceField:
        """The field of this one's structures and, after them, those of ``others``."""
        batches = [self.batch, *(other.batch for other in others)]
        return replace(self, batch=graphs.join_structures(batches))

    def freeze(self, positions: Tensor) -> HydraForceField:
        """The field with its graph built at positions [n, 3], and held."""
        if self.graphs is None:
            return replace(self, live=False)
        data = with_positions(self.batch, positions)
        with _one_map(self.model, positions.device):
            return replace(self, batch=self.graphs.build(data), live=False)

    def unfreeze(self) -> HydraForceField:
        """The field with its graph built anew at every evaluation."""
        return replace(self, live=True)

    def skin(self) -> Tensor:
        """How far from the cutoff the nearest pair distance is, per structure [s], Angstrom.

        No edge can enter or leave before two atoms have moved by this much together. NaN where the
        model chooses neighbours by rank too.
        """
        assert self.graphs is not None
        return self.graphs.skin(self.batch)

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa."""
        return graphs.edges_changed(self.batch, self.freeze(positions).batch)
