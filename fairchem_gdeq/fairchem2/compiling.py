"""``torch.compile`` of a backbone, for runs that are long enough to pay for it."""

from __future__ import annotations

import torch
from fairchem.core.models.base import HydraModel

from fairchem_gdeq.fairchem2.conservative import is_conservative


def compile_backbone(model: HydraModel, backend: str = "inductor") -> None:
    """Compile a model's backbone, once for all sizes of batches; the first evaluations then take minutes.

    The graph is built outside of what is compiled, frozen or not, so that the function that is
    differentiated stays the one that is evaluated. A copy of the model is not compiled.

    Args:
        backend: of ``torch.compile``.

    Raises:
        ValueError: its forces are the gradient of its energy, which a compiled backbone has no second
            derivative of.
    """
    if is_conservative(model):
        raise ValueError(
            f"compile: true: {type(model.backbone).__name__} computes forces as the gradient of its "
            "energy, and what torch.compile makes cannot be differentiated twice. Set compile: false"
        )
    # One linearisation serves all products of an adjoint solve: its buffers must outlive a backward.
    torch._functorch.config.donated_buffer = False
    model.backbone.compile(dynamic=True, backend=backend)
