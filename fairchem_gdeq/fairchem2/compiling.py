"""``torch.compile`` of a backbone, for runs that are long enough to pay for it."""

from __future__ import annotations

import torch
from fairchem.core.models.base import HydraModel


def compile_backbone(model: HydraModel, backend: str = "inductor") -> None:
    """Compile a model's backbone, once for all sizes of batches; the first evaluations then take minutes.

    The graph is built outside of what is compiled, frozen or not, so that the function that is
    differentiated stays the one that is evaluated. A copy of the model is not compiled.

    Args:
        backend: of ``torch.compile``.
    """
    # One linearisation serves all products of an adjoint solve: its buffers must outlive a backward.
    torch._functorch.config.donated_buffer = False
    model.backbone.compile(dynamic=True, backend=backend)
