"""What the force fields of both fairchem lines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fairchem_gdeq.frozen.cells import with_positions
from fairchem_gdeq.frozen.forward import backbone_of, evaluating, full_precision
from fairchem_gdeq.frozen.graphs import Neighbours, edges_changed


@dataclass(frozen=True)
class FrozenGraphField(ABC):
    """F(X; c) of a fairchem model for one batch; a ``ForceField`` of ``fairchem_gdeq.relax``.

    Its neighbour graph is held, or built anew at every evaluation. A fairchem line says how a field
    is made of a batch (``unfrozen``), how its graph is built and compared, how the model is run, and
    how structures are selected and joined.

    Attributes:
        model: the bare model, without wrappers such as DDP.
        batch: the structures; forces do not depend on the positions in it.
    """

    model: nn.Module
    batch: Any

    # ---- what a line says --------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def unfrozen(cls, *context: Any, **named: Any) -> Self:
        """The field that builds its graph anew at every evaluation; none is built here.

        Raises:
            ValueError: the model or the structures cannot be differentiated exactly; says why.
        """

    @property
    @abstractmethod
    def graphs(self) -> Neighbours | None:
        """How the backbone's neighbours are frozen; None if it has none."""

    @property
    @abstractmethod
    def live(self) -> bool:
        """Whether the graph is built anew at every evaluation, as a plain relaxation does."""

    @abstractmethod
    def select(self, structures: Tensor) -> Self:
        """The field of the structures where the mask [s] holds."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """The field of this one's structures and, after them, those of ``others``."""

    @abstractmethod
    def unfreeze(self) -> Self:
        """The field with its graph built anew at every evaluation."""

    @abstractmethod
    def _holding(self, batch: Any) -> Self:
        """The field with the graph that the model makes at the positions of ``batch``, and held."""

    @abstractmethod
    def _edges(self) -> Tensor:
        """The held graph's ``graphs.edge_rows``."""

    @abstractmethod
    def _given(self, batch: Any) -> AbstractContextManager[None]:
        """Inside, a backbone with neighbours works on the held graph at the positions of ``batch``."""

    @abstractmethod
    def _run(self, batch: Any) -> Tensor:
        """The model's forces [n, 3], eV/Angstrom."""

    def _settings(self, device: torch.device) -> AbstractContextManager[None]:
        """What else must hold while the model runs, so that it is one function with a derivative."""
        return nullcontext()

    # ---- what follows ------------------------------------------------------------------------

    @classmethod
    def frozen(cls, *context: Any, **named: Any) -> Self:
        """The field with its graph built at the batch's positions; takes what ``unfrozen`` takes.

        Raises:
            ValueError: as ``unfrozen``, or a structure cannot have a graph; says which and why.
        """
        field = cls.unfrozen(*context, **named)
        return field.freeze(field.batch.pos)

    def on(self, device: torch.device | str) -> Self:
        """The field on another device, following its positions, without waiting for the device."""
        batch = with_positions(self.batch, self.batch.pos).to(device, non_blocking=True)
        return replace(self, batch=batch).unfreeze()

    @property
    def has_graph(self) -> bool:
        """Whether the backbone works on neighbours at all."""
        return self.graphs is not None

    @property
    def translation_invariant(self) -> bool:
        """True unless the backbone says that it reads absolute coordinates."""
        return getattr(backbone_of(self.model), "translation_invariant", True)

    @property
    def rotation_equivariant(self) -> bool:
        """Whether forces turn with a structure that is not periodic."""
        return self.graphs is not None and self.graphs.rotation_equivariant

    @property
    def recomputes(self) -> bool:
        """Whether a backward evaluates parts of the model again (activation checkpointing).

        It does so with what the model's modules remember of the latest batch, which has to be the same.
        """
        return any(
            getattr(module, key, None)
            for module in self.model.modules()
            for key in ("activation_checkpoint_chunk_size", "activation_checkpointing")
        )

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3], eV/Angstrom."""
        return self._evaluated(positions, self._run)

    def _evaluated(self, positions: Tensor, run: Callable[[Any], Tensor]) -> Tensor:
        """What ``run`` makes of the batch at positions [n, 3], Angstrom, with the graph that it sees."""
        field = self.freeze(positions) if self.live else self
        batch = with_positions(field.batch, positions)
        given = field._given(batch) if self.has_graph else nullcontext()
        with given, self._one_map(positions.device):
            return run(batch)

    def freeze(self, positions: Tensor) -> Self:
        """The field with its graph built at positions [n, 3], and held."""
        if not self.has_graph:
            return self._holding(self.batch)
        with self._one_map(positions.device):
            return self._holding(with_positions(self.batch, positions.detach()))

    def skin(self) -> Tensor:
        """How far from the cutoff the nearest pair distance is, per structure [s], Angstrom.

        No edge can enter or leave before two atoms have moved by this much together. NaN where the
        model chooses neighbours by rank too.
        """
        assert self.graphs is not None
        return self.graphs.skin(self.batch)

    def edges_changed(self, positions: Tensor) -> Tensor:
        """Edges [s] that a graph built at positions [n, 3] has and this one lacks, or vice versa.

        Raises:
            ValueError: this field holds no graph.
        """
        if self.live:
            raise ValueError("a field that follows its positions holds no graph to compare with")
        after = self.freeze(positions)
        owner, count = self.batch.batch, len(self.batch.natoms)
        return edges_changed(self._edges(), after._edges(), owner, count)

    @contextmanager
    def _one_map(self, device: torch.device) -> Iterator[None]:
        """The same function at every evaluation, whatever mode and autocast the caller left."""
        with evaluating(self.model), full_precision(device), self._settings(device):
            yield
