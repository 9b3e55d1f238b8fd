"""The Neumann series of eq. 4, discounted by the damping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.adjoints.base import (
    ADJOINTS,
    AdjointSolution,
    Iterative,
    judged,
    norms,
    system,
)
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import to_host


@ADJOINTS.register("neumann")
@dataclass(frozen=True)
class Neumann(Iterative):
    """u <- (g + J_G^T u) / (1 + mu).

    Converges only where the spectral radius of J_G is below 1 + mu.
    """

    @torch.no_grad()
    def __call__(
        self, operator: Operator, positions: Tensor, g: Tensor, guess: Tensor | None = None
    ) -> AdjointSolution:
        """As ``Adjoint``."""
        s = operator.structures
        g = operator.project(g, positions)
        u = g / (1.0 + self.damping)
        scale = norms(operator, g)
        if guess is not None:  # but one that is not finite, or of nothing
            guess = operator.project(guess, positions)
            sound = (scale > 0) & norms(operator, guess).isfinite()
            u = torch.where(sound[s.batch, None], guess, u)
        (length,) = to_host(scale)
        residual = torch.where(length == 0, torch.zeros_like(length), torch.inf)
        vjps = torch.zeros(s.count, dtype=torch.long)
        which = (length > 0).nonzero().squeeze(-1)
        active, atoms = operator.select(length > 0), s.atoms_of(length > 0)
        for _ in range(self.max_vjps):
            if len(which) == 0:
                break
            error = g[atoms] - system(active, positions[atoms], u[atoms], self.damping)
            (now,) = to_host(norms(active, error))
            vjps[which] += 1
            residual[which] = now / length[which]
            # The residual just measured is that of the u before this update: keep that one.
            going = (residual[which] > self.tol) & torch.isfinite(now)
            if not bool(going.all()):
                keep = active.structures.atoms_of(going)
                active, which = active.select(going), which[going]
                atoms, error = atoms[keep], error[keep]
            u[atoms] += error / (1.0 + self.damping)
        return judged(operator, u, scale, residual, vjps, self.tol, self.damping)
