"""How one plain step follows another: by default each by itself; or with momentum, or ever shorter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import to_device


@dataclass(frozen=True)
class Descent:
    """X_{k+1} = X_k + alpha gamma^k v_k with v_k = F(X_k) + beta v_{k-1}, v_{-1} = 0 (BPTT paper, C.3).

    By default the plain steps are G itself. Where F vanishes nothing is pushed any more, so the fixed
    points are those of G, whatever the descent.

    Attributes:
        momentum: beta, from 0 on and below 1.
        annealing: gamma, above 0 and at most 1.
    """

    momentum: float = 0.0
    annealing: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a number that cannot be meant; names it.
        """
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected a number from 0 and below 1")
        if not 0 < self.annealing <= 1:
            raise ValueError(f"annealing={self.annealing}: expected a number above 0 and at most 1")

    def rest(self, positions: Tensor) -> Tensor | None:
        """v_{-1} [n, 3], eV/Angstrom, of structures that have made no step; None without momentum."""
        return torch.zeros_like(positions) if self.momentum else None

    def velocity(self, forces: Tensor, before: Tensor | None) -> Tensor:
        """v_k [n, 3] from F(X_k) [n, 3] and v_{k-1}, None where there is none; eV/Angstrom."""
        return forces if before is None else forces + self.momentum * before

    def shrunk(self, done: Tensor, batch: Tensor, like: Tensor) -> Tensor | None:
        """gamma^k for each atom [n, 1]; None where that is 1.

        Args:
            done: [s] k, steps that each structure has made before; on the host.
            batch: [n], the structure of each atom.
            like: whose type and device the result has.
        """
        if self.annealing == 1:
            return None
        factors = (self.annealing ** done.double()).to(like.dtype)
        return to_device(factors, like.device)[batch, None]
