"""Random numbers that do not depend on what was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch's numbers are those of ``seed``; outside they go on as if none had been drawn.

    On the CPU and, where CUDA is in use, on the device or else the current GPU.
    """
    devices = [device] if device.type == "cuda" else []
    if not devices and torch.cuda.is_initialized():  # the seed is set there, too
        devices = [torch.device("cuda", torch.cuda.current_device())]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
