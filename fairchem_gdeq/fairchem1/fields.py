"""Any fairchem 1 model with direct forces as a ``ForceField``, its neighbour graph frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.batches import (
    join_structures,
    plain,
    select_structures,
    with_inverse_cells,
    with_positions,
)
from fairchem_gdeq.fairchem1.families import graphs_of
from fairchem_gdeq.fairchem1.graphs import EdgeList, FrozenGraph, edges_changed, join_graphs
from fairchem_gdeq.fairchem1.installing import installed
from fairchem_gdeq.fairchem1.supported import backbone_of, require_exact
from fairchem_gdeq.frozen.cells import inverse_cells
from fairchem_gdeq.frozen.forward import evaluating, full_precision


def bare_model(module: nn.Module) -> nn.Module:
    """The model inside any number of DDP wrappers."""
    while isinstance(getattr(module, "module", None), nn.Module):
        module = module.module
    return module


def forces_of(out: dict[str, Any]) -> Tensor:
    """Forces [n, 3] among a model's outputs, whole models' and hydra heads' alike.

    Raises:
        ValueError: there are none.
    """
    for found in (out, *(value for value in out.values() if isinstance(value, dict))):
        if isinstance(found.get("forces"), Tensor):
            return found["forces"].view(-1, 3)
    raise ValueError(f"the model has no output 'forces', only {list(out)}: it needs a force head")


@contextmanager
def _without_detours(model: nn.Module) -> Iterator[None]:
    """Two settings of fairchem 1 that cost memory or break derivatives are off inside.

    Models without a direct_forces switch record a graph even under no_grad. Checkpointing in
    evaluation mode is of the re-entrant kind, which loses the derivative by what a block reads from
    its attributes, as EquiformerV2's blocks do with features and frames.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "regress_forces") and not getattr(module, "direct_forces", False):
                stack.enter_context(installed(module, "direct_forces", True))
            if getattr(module, "activation_checkpoint", False):
                stack.enter_context(installed(module, "activation_checkpoint", False))
        yield


@dataclass(frozen=True)
class OCPForceField:
    """F(X; c) of a fairchem 1 model for one batch; a ``ForceField`` of ``fairchem_gdeq.relax``.

    Attributes:
        model: the bare model, without DDP.
        batch: the structures where they were frozen; forces do not depend on these positions.
        denorm: turns the model's outputs into eV/Angstrom, such as a trainer's
            ``normalizers["forces"].denorm``.
        graph: the frozen graph, or None to build it anew at every evaluation.
    """

    model: nn.Module
    batch: Batch
    denorm: Callable[[Tensor], Tensor]
    graph: FrozenGraph | None = None

    @classmethod
    def frozen(
        cls, model: nn.Module, batch: Batch, denorm: Callable[[Tensor], Tensor]
    ) -> OCPForceField:
        """The field with its graph built at the batch's positions.

        Raises:
            ValueError: as ``unfrozen``, or a structure has no neighbours.
        """
        return cls.unfrozen(model, batch, denorm).freeze(batch.pos)

    @classmethod
    def unfrozen(
        cls, model: nn.Module, batch: Batch, denorm: Callable[[Tensor], Tensor]
    ) -> OCPForceField:
        """The field that builds its graph anew at every evaluation; none is built here.

        Raises:
            ValueError: the model cannot be differentiated exactly, as ``supported`` says, or a
                structure is periodic and its cell has no volume.
        """
        model = bare_model(model)
        require_exact(model)
        batch = plain(batch)
        inverse = inverse_cells(batch, graphs_of(backbone_of(model)).periodic(batch))
        return cls(model, with_inverse_cells(batch, inverse), denorm)

    def on(self, device: torch.device | str) -> OCPForceField:
        """The field on another device, following its positions, without waiting for the device."""
        batch = copy.copy(self.batch).to(device, non_blocking=True)
        return replace(self, batch=batch, graph=None)

    @property
    def graphs(self) -> EdgeList:
        """How the backbone's neighbours are frozen."""
        return graphs_of(backbone_of(self.model))

    @property
    def has_graph(self) -> bool:
        """Whether the backbone works on neighbours at all: every one of fairchem 1 does."""
        return True

    @property
    def translation_invariant(self) -> bool:
        """Whether a rigid shift leaves the forces: no backbone of fairchem 1 reads coordinates."""
        return True

    @property
    def rotation_equivariant(self) -> bool:
        """Whether forces turn with a structure that is not periodic: those of all of fairchem 1 do."""
        return True

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3], eV/Angstrom."""
        graph = self.freeze(positions).graph if self.graph is None else self.graph
        assert graph is not None
        data = with_positions(self.batch, positions)
        with (
            self.graphs.given(graph),
            _without_detours(self.model),
            evaluating(self.model),
            full_precision(positions.device),
        ):
            return self.denorm(forces_of(self.model(data)))

    def select(self, structures: Tensor) -> OCPForceField:
        """The field of the structures where the mask [s] holds."""
        graph = None if self.graph is None else self.graph.select(structures, self.batch.batch)
        return replace(self, batch=select_structures(self.batch, structures), graph=graph)

    def join(self, others: Sequence[OCPForceField]) -> OCPForceField:
        """The field of this one's structures and, after them, those of ``others``."""
        fields = [self, *others]
        graphs = [field.graph for field in fields if field.graph is not None]
        graph = None
        if len(graphs) == len(fields):
            graph = join_graphs(graphs, [len(field.batch.batch) for field in fields])
        return replace(self, batch=join_structures([field.batch for field in fields]), graph=graph)

    def freeze(self, positions: Tensor) -> OCPForceField:
        """The field with its graph built at positions [n, 3], and held."""
        batch = with_positions(self.batch, positions.detach())
        with evaluating(self.model), full_precision(positions.device):
            return replace(self, batch=batch, graph=self.graphs.build(batch))

    def unfreeze(self) -> OCPForceField:
        """The field with its graph built anew at every evaluation."""
        return replace(self, graph=None)

    def skin(self) -> Tensor:
        """How far from the cutoff the nearest pair distance is, per structure [s], Angstrom.

        No edge can enter or leave before two atoms have moved by this much together. NaN where the
        model chooses neighbours by rank too.
        """
        return self.graphs.skin(self.batch)

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa.

        Raises:
            ValueError: this field holds no graph.
        """
        if self.graph is None:
            raise ValueError("a field that follows its positions holds no graph to compare with")
        after = self.freeze(positions).graph
        assert after is not None
        return edges_changed(self.graph, after, self.batch.batch)
