"""What a solver is, and the state of one: declared once, selected and joined for all solvers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.registry import Registry
from fairchem_gdeq.relax.segments import segment_max_norm


@dataclass(frozen=True)
class _Axes:
    """Of an entry of a state: which axis counts its owners, and which count earlier steps."""

    atoms: bool
    owners: int
    history: tuple[int, ...]


def per_atom(history: bool = False) -> Any:
    """An entry with a value for each atom [n, ...].

    With ``history`` it is [m, n, ...], of m earlier steps, the oldest first.
    """
    axes = _Axes(atoms=True, owners=int(history), history=(0,) if history else ())
    return field(metadata={"axes": axes})


def per_structure(history: int = 0) -> Any:
    """An entry with a value for each structure [s, ...].

    The next ``history`` axes count earlier steps, the oldest first: [s, m, m] for their products.
    """
    axes = _Axes(atoms=False, owners=0, history=tuple(range(1, 1 + history)))
    return field(metadata={"axes": axes})


@dataclass(frozen=True)
class SolverState:
    """What a solver remembers of each structure; every entry is a tensor and says whose it is.

    A solver subclasses it, with entries declared by ``per_atom`` and ``per_structure``. Zero has to
    mean "no such step" in entries with a history: where structures of different age are joined, the
    younger ones get zeros before their own.
    """

    def select(self, structures: Tensor, atoms: Tensor) -> Self:
        """The state of the structures with indices [k], whose atoms have indices [m]."""
        kept = {}
        for entry, axes in self._entries():
            rows = atoms if axes.atoms else structures
            kept[entry] = getattr(self, entry).index_select(axes.owners, rows)
        return replace(self, **kept)

    def join(self, others: Sequence[Self]) -> Self:
        """This state followed by those of ``others``, each at its own stage."""
        joined = {}
        for entry, axes in self._entries():
            parts = [getattr(state, entry) for state in (self, *others)]
            for axis in axes.history:
                longest = max(part.shape[axis] for part in parts)
                parts = [_lengthened(part, axis, longest) for part in parts]
            joined[entry] = torch.cat(parts, dim=axes.owners)
        return replace(self, **joined)

    def _entries(self) -> list[tuple[str, _Axes]]:
        return [(entry.name, entry.metadata["axes"]) for entry in fields(self)]


def _lengthened(values: Tensor, axis: int, length: int) -> Tensor:
    """The values with zeros before them along an axis, as many as make ``length``."""
    missing = length - values.shape[axis]
    if missing == 0:
        return values
    shape = [*values.shape[:axis], missing, *values.shape[axis + 1 :]]
    return torch.cat([values.new_zeros(shape), values], dim=axis)


S = TypeVar("S", bound=SolverState)


class Solver(Protocol[S]):
    """A relaxer for a batch: settings alone, a frozen dataclass. All it remembers is in its state.

    Every structure's state is its own: what it does depends on nothing but its own path.
    """

    def start(self, operator: Operator, positions: Tensor) -> S:
        """The state of structures at positions [n, 3] that have made no step yet."""
        ...

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: S
    ) -> tuple[Tensor, S]:
        """Displacement [n, 3] (Angstrom) from positions [n, 3] with forces [n, 3], and the new state."""
        ...


SOLVERS: Registry[Solver[Any]] = Registry("solver")


def limit(move: Tensor, longest: float, operator: Operator) -> Tensor:
    """Scale each structure's displacement [n, 3] so that no atom moves further than ``longest``."""
    s = operator.structures
    length = segment_max_norm(move, s.batch, s.count)
    return move * (longest / length.clamp_min(longest))[s.batch, None]
