"""The proximal term: weights are held near those of the base (L2-SP, Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Proximal:
    """The gradient step of strength/2 |theta - theta_0|^2 after each of the optimizer.

    theta goes towards theta_0 by its learning rate times the strength, as in AdamW apart from the
    optimizer's own step: within, Adam would divide the term by the size of the gradient.
    """

    def __init__(
        self, parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer, strength: float
    ) -> None:
        """
        Args:
            parameters: theta, at theta_0 now.
            optimizer: theirs, at its highest rates or below.
            strength: lambda.

        Raises:
            ValueError: a strength that would lead beyond theta_0.
        """
        groups = optimizer.param_groups
        highest = max(float(each.get("initial_lr", each["lr"])) for each in groups)
        if not 0 <= strength * highest <= 1:
            raise ValueError(
                f"proximal={strength}: expected a number from 0 to 1 / lr = {1 / highest:g}"
            )
        self.optimizer, self.strength = optimizer, strength
        self.base = {p: p.detach().clone() for p in parameters if p.requires_grad}

    @torch.no_grad()
    def __call__(self) -> None:
        """Pull once."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p in self.base:
                    p.lerp_(self.base[p], float(group["lr"]) * self.strength)
