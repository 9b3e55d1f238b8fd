"""Any fairchem 1 model as a ``ForceField``, its neighbour graph frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairchem.core.models.esen.esen import eSEN_Backbone
from fairchem.core.models.esen.esen_dens import eSEN_DeNS_Backbone
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_gdeq.fairchem1.batches import (
    join_structures,
    plain,
    select_structures,
    with_inverse_cells,
)
from fairchem_gdeq.fairchem1.families import graphs_of
from fairchem_gdeq.fairchem1.graphs import EdgeList, FrozenGraph, join_graphs
from fairchem_gdeq.fairchem1.supported import GRADIENT_HEADS, is_conservative, require_exact
from fairchem_gdeq.frozen.cells import inverse_cells
from fairchem_gdeq.frozen.field import FrozenGraphField
from fairchem_gdeq.frozen.forward import backbone_of
from fairchem_gdeq.frozen.patching import installed, swapped


def bare_model(module: nn.Module) -> nn.Module:
    """The model inside any number of DDP wrappers."""
    while isinstance(inside := getattr(module, "module", None), nn.Module):
        module = inside
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


@dataclass(frozen=True)
class OCPForceField(FrozenGraphField):
    """F(X; c) of a fairchem 1 model for one batch; a ``ForceField`` of ``fairchem_gdeq.relax``.

    Attributes:
        model: the bare model, without DDP.
        batch: the structures; where the graph is held, where they were frozen.
        denorm: turns the model's outputs into eV/Angstrom, such as a trainer's
            ``normalizers["forces"].denorm``.
        graph: the frozen graph, or None to build it anew at every evaluation.
    """

    batch: Batch
    denorm: Callable[[Tensor], Tensor]
    graph: FrozenGraph | None = None

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
        return cls(model=model, batch=with_inverse_cells(batch, inverse), denorm=denorm)

    @property
    def graphs(self) -> EdgeList:
        """How the backbone's neighbours are frozen: every one of fairchem 1 has some."""
        return graphs_of(backbone_of(self.model))

    @property
    def live(self) -> bool:
        """As ``FrozenGraphField.live``."""
        return self.graph is None

    def select(self, structures: Tensor) -> OCPForceField:
        """As ``FrozenGraphField.select``."""
        graph = None if self.graph is None else self.graph.select(structures, self.batch.batch)
        return replace(self, batch=select_structures(self.batch, structures), graph=graph)

    def join(self, others: Sequence[OCPForceField]) -> OCPForceField:
        """As ``FrozenGraphField.join``."""
        fields = [self, *others]
        graphs = [field.graph for field in fields if field.graph is not None]
        graph = None
        if len(graphs) == len(fields):
            graph = join_graphs(graphs, [len(field.batch.batch) for field in fields])
        return replace(self, batch=join_structures([field.batch for field in fields]), graph=graph)

    def unfreeze(self) -> OCPForceField:
        """As ``FrozenGraphField.unfreeze``."""
        return replace(self, graph=None)

    def _holding(self, batch: Batch) -> OCPForceField:
        return replace(self, batch=batch, graph=self.graphs.build(batch))

    @property
    def _held(self) -> FrozenGraph:
        assert self.graph is not None
        return self.graph

    def _edges(self) -> Tensor:
        return self._held.rows()

    def _given(self, batch: Batch) -> AbstractContextManager[None]:
        return self.graphs.given(self._held)

    def _run(self, batch: Batch) -> Tensor:
        if not is_conservative(self.model):
            return self.denorm(forces_of(self.model(batch)))
        wanted = torch.is_grad_enabled()
        if not (wanted and batch.pos.requires_grad):  # the model would mark the caller's tensor
            batch.pos = batch.pos.detach().requires_grad_(True)
        with torch.enable_grad():
            forces = forces_of(self.model(batch))
        return self.denorm(forces if wanted else forces.detach())

    @contextmanager
    def _settings(self, device: torch.device) -> Iterator[None]:
        """Settings of fairchem 1 that cost memory or break derivatives are off inside.

        Models without a direct_forces switch record a graph even under no_grad. Heads of conservative
        ones keep that of their forces in training mode alone, and no stress is asked for. Checkpointing
        in evaluation mode is of the re-entrant kind, which loses the derivative by what a block reads
        from its attributes, as EquiformerV2's blocks do with features and frames.
        """
        conservative = is_conservative(self.model)
        with ExitStack() as stack:
            for module in self.model.modules():
                derived = not getattr(module, "direct_forces", False)
                if hasattr(module, "regress_forces") and derived and not conservative:
                    stack.enter_context(installed(module, "direct_forces", True))
                if conservative and getattr(module, "regress_stress", False):
                    stack.enter_context(swapped(module, "regress_stress", False))
                if conservative and isinstance(module, eSEN_Backbone | eSEN_DeNS_Backbone):
                    # It marks positions in a way that only a leaf of the graph allows; they are marked.
                    stack.enter_context(swapped(module, "regress_forces", False))
                if conservative and isinstance(module, GRADIENT_HEADS):
                    stack.enter_context(swapped(module, "training", torch.is_grad_enabled()))
                if getattr(module, "activation_checkpoint", False):
                    stack.enter_context(swapped(module, "activation_checkpoint", False))
            yield
