"""How plain steps follow one another: by default each by itself; with momentum, or of other lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.decoder import StepDecoder
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.relax.structures import Structures


@dataclass(frozen=True)
class Descent:
    """X_{k+1} = X_k + alpha s_k gamma^k v_k with v_k = F(X_k) + beta v_{k-1}, v_{-1} = 0.

    BPTT paper, C.3 and B. By default the plain steps are G itself. Where F vanishes nothing is pushed
    any more, so the fixed points are those of G, whatever the descent.

    Attributes:
        momentum: beta, from 0 on and below 1.
        annealing: gamma, above 0 and at most 1.
        decoder: of s_k by the structure and its forces; None, or a width of 0 in its place, for 1. Any
            other width makes one.
    """

    momentum: float = 0.0
    annealing: float = 1.0
    decoder: StepDecoder | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a number that cannot be meant; names it.
        """
        if isinstance(self.decoder, int):
            made = StepDecoder(self.decoder) if self.decoder else None
            object.__setattr__(self, "decoder", made)
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

    def factor(
        self, positions: Tensor, forces: Tensor, done: Tensor, structures: Structures
    ) -> Tensor | None:
        """s_k gamma^k for each atom [n, 1]; None where that is 1.

        Args:
            positions, forces: [n, 3] X_k and F(X_k), Angstrom and eV/Angstrom.
            done: [s] k, steps that each structure has made before; on the host.
            structures: the batch.
        """
        if self.annealing == 1 and self.decoder is None:
            return None
        shrunk = (self.annealing ** done.double()).to(forces.dtype)
        factors = to_device(shrunk, forces.device)
        if self.decoder is not None:
            factors = factors * self.decoder(positions, forces, structures)
        return factors[structures.batch, None]
