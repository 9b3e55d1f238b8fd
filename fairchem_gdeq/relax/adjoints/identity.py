"""No linear solve: the gradient as if J_G were zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.adjoints.base import ADJOINTS, AdjointSolution
from fairchem_gdeq.relax.operator import Operator


@ADJOINTS.register("identity")
@dataclass(frozen=True)
class Identity:
    """u = g: Jacobian-free backpropagation (Fung et al. 2022), no VJP and no promise.

    Its residual is not measured (NaN); it counts as converged because nothing was to converge.
    """

    @torch.no_grad()
    def __call__(
        self, operator: Operator, positions: Tensor, g: Tensor, guess: Tensor | None = None
    ) -> AdjointSolution:
        """As ``Adjoint``; a guess is of no use to it."""
        g = operator.project(g, positions)
        none = torch.zeros(operator.structures.count, dtype=torch.bool, device=g.device)
        return AdjointSolution(
            u=g,
            converged=~none,
            unbounded=none,
            residual=torch.full_like(none, torch.nan, dtype=g.dtype),
            vjps=none.long(),
        )
