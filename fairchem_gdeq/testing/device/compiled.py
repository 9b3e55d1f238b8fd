"""Operators of compiled extensions on the pretended device: they know CPU and CUDA, not it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.testing.device import fake


class _OnMemory(torch.autograd.Function):
    """An operator on the CPU memory of tensors on the device, with its own derivative."""

    @staticmethod
    def forward(ctx: Any, func: Any, *args: Any) -> Any:
        learn = ctx.needs_input_grad[1:]
        ctx.inputs = [
            x.raw.detach().requires_grad_(wanted) if isinstance(x, fake.FakeTensor) else x
            for x, wanted in zip(args, learn, strict=True)
        ]
        with torch.enable_grad():
            ctx.outputs = func(*ctx.inputs)
        if isinstance(ctx.outputs, Tensor):
            return fake.FakeTensor(ctx.outputs.detach())
        made = tuple(fake.FakeTensor(x.detach()) for x in ctx.outputs)
        ctx.mark_non_differentiable(*(x for x in made if not x.is_floating_point()))
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        outputs = [ctx.outputs] if isinstance(ctx.outputs, Tensor) else ctx.outputs
        kept = [i for i, x in enumerate(outputs) if x.requires_grad]
        learn = [i for i, wanted in enumerate(ctx.needs_input_grad[1:]) if wanted]
        found = torch.autograd.grad(
            [outputs[i] for i in kept],
            [ctx.inputs[i] for i in learn],
            [grads[i].raw for i in kept],
        )
        out: list[Any] = [None] * len(ctx.inputs)
        for i, grad in zip(learn, found, strict=True):
            out[i] = fake.FakeTensor(grad)
        return None, *out


def carry(*names: str) -> torch.library.Library:
    """Give the operators of an extension, by names such as ``torch_scatter::segment_sum_csr``, kernels.

    Returns:
        What keeps them registered for as long as it lives.
    """
    library = torch.library.Library(names[0].partition("::")[0], "IMPL")
    for name in names:
        space, _, operator = name.partition("::")
        func = getattr(getattr(torch.ops, space), operator).default
        library.impl(operator, partial(_OnMemory.apply, func), "AutogradPrivateUse1")
    return library
