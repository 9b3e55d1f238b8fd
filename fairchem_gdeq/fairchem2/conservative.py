"""Models whose forces are the gradient of their energy, F = -dE/dX.

fairchem's heads compute that gradient in the forward pass, and keep what a second derivative takes where
they are in training mode. We evaluate models in evaluation mode, so the heads alone are told to keep it,
and only where somebody wants a gradient: a relaxation does not pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn

from fairchem_gdeq.frozen.patching import installed


def is_conservative(model: HydraModel) -> bool:
    """Whether forces are the gradient of the energy, by the backbone's own word."""
    config = _regress(model.backbone)
    return not getattr(config, "direct_forces", True)


@contextmanager
def energy_gradient(model: HydraModel, batch: AtomicData) -> Iterator[None]:
    """Inside, a conservative model's forces on ``batch`` can be differentiated where gradients are on.

    No stress is computed, which nobody asks for. The caller's positions are not marked as what is
    differentiated by. Nothing changes for other models.
    """
    if not is_conservative(model):
        yield
        return
    if not (torch.is_grad_enabled() and batch.pos.requires_grad):
        batch.pos = batch.pos.detach()
    owners = [model.backbone, *model.output_heads.modules()]
    with ExitStack() as settings:
        for owner in owners:
            config = _regress(owner)
            if getattr(owner, "regress_stress", False):
                settings.enter_context(installed(owner, "regress_stress", False))
            if config is not owner and config.stress:
                settings.enter_context(installed(config, "stress", False))
            if owner is not model.backbone and hasattr(config, "direct_forces"):
                settings.enter_context(installed(owner, "training", torch.is_grad_enabled()))
        yield


def require_second_derivatives(model: HydraModel, forces: Tensor) -> None:
    """Refuse forces of a conservative model that cannot be differentiated though gradients are on.

    Raises:
        ValueError: names the heads, and says what they have to do.
    """
    if torch.is_grad_enabled() and is_conservative(model) and not forces.requires_grad:
        heads = ", ".join(type(head).__name__ for head in model.output_heads.values())
        raise ValueError(
            f"{type(model.backbone).__name__} computes forces as the gradient of its energy, and its "
            f"heads ({heads}) keep no graph of it: expected forces that can be differentiated again "
            "(create_graph=self.training), as the heads of fairchem have them"
        )


def _regress(module: nn.Module) -> Any:
    """Where a module says how forces come about: its ``regress_config``, or itself (EScAIP)."""
    return getattr(module, "regress_config", module)
