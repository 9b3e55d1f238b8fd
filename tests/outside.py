"""One part of each kind as somebody else would write it: nothing here is known to the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.models.coordinates import CoordinateBackbone
from fairchem_gdeq.relax import (
    GMRES,
    LOSSES,
    SIGNALS,
    SOLVERS,
    Operator,
    SignalReport,
    SolverState,
    Structures,
    TruncatedBPTT,
    delta_q,
    per_atom,
    per_structure,
)
from fairchem_gdeq.relax.adjoints import ADJOINTS


@dataclass(frozen=True)
class Momentum(SolverState):
    """The last few displacements, the oldest first, and the number of steps."""

    moves: Tensor = per_atom(history=True)
    steps: Tensor = per_structure()


@SOLVERS.register("heavy_ball")
@dataclass(frozen=True)
class HeavyBall:
    """Gradient descent with momentum, averaged over a few earlier displacements."""

    momentum: float = 0.3
    memory: int = 2

    def start(self, operator: Operator, positions: Tensor) -> Momentum:
        """At rest."""
        none = positions.new_zeros(0, *positions.shape)
        return Momentum(none, positions.new_zeros(operator.structures.count))

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: Momentum
    ) -> tuple[Tensor, Momentum]:
        """One step."""
        move = operator.displacement(forces)
        move = move + self.momentum * state.moves.sum(0) / self.memory
        moves = torch.cat([state.moves, move[None]])[-self.memory :]
        return move, Momentum(moves, state.steps + 1)


@ADJOINTS.register("short_gmres")
@dataclass(frozen=True)
class ShortGMRES(GMRES):
    """GMRES that starts again after every three vectors."""

    restart: int = 3


@LOSSES.register("root_delta_q")
@dataclass(frozen=True)
class RootDeltaQ:
    """The root of 1 + Delta Q: structures that are far away pull less."""

    def __call__(
        self, positions: Tensor, target: Tensor, structures: Structures, pin: Tensor
    ) -> Tensor:
        """[s]."""
        return (1 + delta_q(positions, target, structures, pin)).sqrt()


@SIGNALS.register("two_windows")
@dataclass(frozen=True, kw_only=True)
class TwoWindows(TruncatedBPTT):
    """The guidance of a short and of a long window, one after the other."""

    short: int = 1

    def __call__(
        self, operator: Operator, start: Tensor, target: Tensor, guess: Tensor | None = None
    ) -> SignalReport:
        """Both add their gradients."""
        self.guide(operator, start, target, self.short)
        return super().__call__(operator, start, target, guess)


class Tethers(CoordinateBackbone):
    """A backbone without neighbours: each atom feels its own place alone."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__(origin=2.7, scale=5.0)
        self.width = hidden
        self.inner = torch.nn.Linear(self.features, hidden)

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{"node_embedding": [n, hidden]}``."""
        return {"node_embedding": torch.tanh(self.inner(self.embed_atoms(data)))}
