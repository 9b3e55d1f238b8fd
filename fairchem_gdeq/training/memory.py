"""Peak memory of a stretch of code: the accelerator's, or this process's resident set."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Start a new measurement; where the system cannot (not Linux), the peak is the process's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            _RESET.write_text("5")
        except OSError:
            return


def peak_mb() -> float:
    """Largest memory since ``reset_peak``, MB (10^6 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
