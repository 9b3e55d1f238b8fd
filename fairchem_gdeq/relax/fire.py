"""FIRE (Bitzek et al. 2006), batched: each structure has its own time step and mixing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import segment_norm, segment_sum


@dataclass
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

    def start(self, operator: Operator, positions: Tensor) -> None:
        """All structures at rest."""
        count = operator.structures.count
        self._velocity = torch.zeros_like(positions)
        self._dt = positions.new_full((count,), self.dt)
        self._mix = positions.new_full((count,), self.mix)
        self._downhill = torch.zeros(count, dtype=torch.long, device=positions.device)

    def propose(self, operator: Operator, positions: Tensor, forces: Tensor) -> Tensor:
        """One FIRE step: [n, 3], Angstrom."""
        batch, count = operator.structures.batch, operator.structures.count
        velocity = self._velocity
        products = torch.stack([forces * velocity, velocity * velocity, forces * forces], dim=-1)
        power, speed, force = segment_sum(products.sum(1), batch, count).unbind(-1)
        downhill = power > 0
        uphill = (speed > 0) & ~downhill
        # Mix the velocity towards the force direction where it goes downhill; stop where uphill.
        ratio = (speed / force.clamp_min(1e-60 if force.dtype == torch.float64 else 1e-30)).sqrt()
        mixed = (1 - self._mix)[batch, None] * velocity + (self._mix * ratio)[batch, None] * forces
        velocity = torch.where(downhill[batch, None], mixed, 0.0)
        speed_up = downhill & (self._downhill > self.patience)
        self._dt = torch.where(speed_up, (self._dt * self.grow).clamp_max(self.dt_max), self._dt)
        self._mix = torch.where(speed_up, self._mix * self.mix_decay, self._mix)
        self._downhill = torch.where(downhill, self._downhill + 1, self._downhill)
        self._dt = torch.where(uphill, self._dt * self.shrink, self._dt)
        self._mix = torch.where(uphill, self.mix, self._mix)
        self._downhill = torch.where(uphill, 0, self._downhill)

        dt = self._dt[batch, None]
        self._velocity = velocity + dt * forces
        move = dt * self._velocity
        length = segment_norm(move, batch, count)
        return move * (self.max_step / length.clamp_min(self.max_step))[batch, None]

    def select(self, structures: Tensor, atoms: Tensor) -> None:
        """Drop the other structures' state."""
        self._velocity = self._velocity[atoms]
        self._dt, self._mix = self._dt[structures], self._mix[structures]
        self._downhill = self._downhill[structures]

    def join(self, others: Sequence[FIRE]) -> None:
        """Append the others' velocities, time steps and mixing."""
        parts = [self, *others]
        self._velocity = torch.cat([p._velocity for p in parts])
        self._dt = torch.cat([p._dt for p in parts])
        self._mix = torch.cat([p._mix for p in parts])
        self._downhill = torch.cat([p._downhill for p in parts])
