"""FIRE (Bitzek et al. 2006), batched: each structure has its own time step and mixing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_norm, segment_sum
from fairchem_gdeq.relax.solvers.base import SOLVERS, SolverState, per_atom, per_structure


@dataclass(frozen=True)
class FIREState(SolverState):
    """Of each structure.

    Attributes:
        velocity: [n, 3].
        dt, mix: [s] time step and share of the force direction.
        downhill: [s] int64, steps since it last went uphill.
    """

    velocity: Tensor = per_atom()
    dt: Tensor = per_structure()
    mix: Tensor = per_structure()
    downhill: Tensor = per_structure()


@SOLVERS.register("fire")
@dataclass(frozen=True)
class FIRE:
    """Defaults and update order as in ASE, so that both make the same steps.

    Attributes:
        dt: first time step; dt_max: largest one (ASE's units, masses of 1).
        max_step: longest displacement of a structure as one 3n-vector, Angstrom.
        patience: downhill steps before the time step grows.
        grow, shrink, mix, mix_decay: the factors f_inc, f_dec, alpha_start, f_alpha.
    """

    dt: float = 0.1
    dt_max: float = 1.0
    max_step: float = 0.2
    patience: int = 5
    grow: float = 1.1
    shrink: float = 0.5
    mix: float = 0.1
    mix_decay: float = 0.99

    def start(self, operator: Operator, positions: Tensor) -> FIREState:
        """All structures at rest."""
        count = operator.structures.count
        return FIREState(
            velocity=torch.zeros_like(positions),
            dt=positions.new_full((count,), self.dt),
            mix=positions.new_full((count,), self.mix),
            downhill=torch.zeros(count, dtype=torch.long, device=positions.device),
        )

    def propose(
        self, operator: Operator, positions: Tensor, forces: Tensor, state: FIREState
    ) -> tuple[Tensor, FIREState]:
        """One FIRE step: [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        velocity, dt, mix, patience = state.velocity, state.dt, state.mix, state.downhill
        products = torch.stack([forces * velocity, velocity * velocity, forces * forces], dim=-1)
        power, speed, force = segment_sum(products.sum(1), batch, count).unbind(-1)
        downhill = power > 0
        uphill = (speed > 0) & ~downhill
        # Mix the velocity towards the force direction where it goes downhill; stop where uphill.
        ratio = (speed / force.clamp_min(1e-60 if force.dtype == torch.float64 else 1e-30)).sqrt()
        mixed = (1 - mix)[batch, None] * velocity + (mix * ratio)[batch, None] * forces
        velocity = torch.where(downhill[batch, None], mixed, 0.0)
        speed_up = downhill & (patience > self.patience)
        dt = torch.where(speed_up, (dt * self.grow).clamp_max(self.dt_max), dt)
        mix = torch.where(speed_up, mix * self.mix_decay, mix)
        patience = torch.where(downhill, patience + 1, patience)
        dt = torch.where(uphill, dt * self.shrink, dt)
        mix = torch.where(uphill, self.mix, mix)
        patience = torch.where(uphill, 0, patience)

        velocity = velocity + dt[batch, None] * forces
        move = dt[batch, None] * velocity
        length = segment_norm(move, batch, count)
        move = move * (self.max_step / length.clamp_min(self.max_step))[batch, None]
        return move, FIREState(velocity=velocity, dt=dt, mix=mix, downhill=patience)
