"""Any fairchem 2 model as a ``ForceField``, its neighbour graph frozen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor, nn

from fairchem_gdeq.fairchem2 import graphs
from fairchem_gdeq.fairchem2.conservative import energy_gradient, require_second_derivatives
from fairchem_gdeq.fairchem2.families import graphs_of
from fairchem_gdeq.fairchem2.graphs import Graphs
from fairchem_gdeq.fairchem2.supported import dataset_names, require_dataset, require_exact
from fairchem_gdeq.frozen.cells import with_positions
from fairchem_gdeq.frozen.drawing import drawing_from
from fairchem_gdeq.frozen.field import FrozenGraphField
from fairchem_gdeq.frozen.graphs import edge_rows

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
        inside = getattr(module, "module", None)
        if not isinstance(inside, nn.Module):
            raise TypeError(
                f"expected a fairchem 2 model with a backbone and heads, got {type(module).__name__}"
            )
        module = inside
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


@dataclass(frozen=True)
class HydraForceField(FrozenGraphField):
    """F(X; c) of a fairchem 2 model for one batch; a ``ForceField`` of ``fairchem_gdeq.relax``.

    Attributes:
        model: the bare model, without DDP or EMA wrappers.
        batch: structures with the frozen graph; positions in it are not used.
        task: the force task; its normalizer turns outputs into eV/Angstrom.
        live: build the graph anew at every evaluation, as a plain relaxation does.
    """

    model: HydraModel
    batch: AtomicData
    task: Task
    live: bool = False

    @classmethod
    def unfrozen(cls, model: HydraModel, tasks: list[Task], batch: AtomicData) -> HydraForceField:
        """The field that builds its graph anew at every evaluation; none is built here.

        Raises:
            ValueError: the model cannot be differentiated exactly (a setting that ``supported``
                names), no single force task is known, it is not for these
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
        return cls(model=model, batch=data, task=task, live=True)

    @property
    def graphs(self) -> Graphs | None:
        """How the backbone's neighbours are frozen; None if it has none."""
        return graphs_of(self.model.backbone)

    def select(self, structures: Tensor) -> HydraForceField:
        """As ``FrozenGraphField.select``."""
        return replace(self, batch=graphs.select_structures(self.batch, structures))

    def join(self, others: Sequence[HydraForceField]) -> HydraForceField:
        """As ``FrozenGraphField.join``."""
        batches = [self.batch, *(other.batch for other in others)]
        return replace(self, batch=graphs.join_structures(batches))

    def unfreeze(self) -> HydraForceField:
        """As ``FrozenGraphField.unfreeze``."""
        return replace(self, live=True)

    def _holding(self, batch: AtomicData) -> HydraForceField:
        built = batch if self.graphs is None else self.graphs.build(batch)
        return replace(self, batch=built, live=False)

    def _edges(self) -> Tensor:
        return edge_rows(self.batch.edge_index, self.batch.cell_offsets)

    def _given(self, batch: AtomicData) -> AbstractContextManager[None]:
        assert self.graphs is not None
        return self.graphs.given(batch)

    def _run(self, batch: AtomicData) -> Tensor:
        with energy_gradient(self.model, batch):
            forces = self.model(batch)[self.task.name][self.task.property].view(-1, 3)
        require_second_derivatives(self.model, forces)
        return self.task.normalizer.denorm(forces)

    def energies(self, positions: Tensor, task: Task) -> Tensor:
        """Energies [s] of an energy task at positions [n, 3], eV, without its element references."""

        def run(batch: AtomicData) -> Tensor:
            with energy_gradient(self.model, batch):
                found = self.model(batch)[task.name][task.property]
            return task.normalizer.denorm(found).view(-1)

        return self._evaluated(positions, run)

    def _settings(self, device: torch.device) -> AbstractContextManager[None]:
        """The same random numbers in every pass.

        eSCN-type models draw the roll of each edge's frame at random even in evaluation mode; forces
        hardly depend on it, but a fixed point and its adjoint need one map, and a resumed run the
        same one.
        """
        return drawing_from(0, device)
