"""The processes that train or evaluate together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is; 0 writes files and prints."""
    return dist.get_rank() if ranks() > 1 else 0


def gather(items: list[Any]) -> list[Any]:
    """The items of every rank, in rank order, on every rank."""
    if ranks() == 1:
        return items
    parts: list[Any] = [None] * ranks()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def from_the_first(answer: Callable[[], T]) -> T:
    """What rank 0 answers, on every rank; no other is asked."""
    if ranks() == 1:
        return answer()
    box: list[Any] = [answer() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    found: T = box[0]
    return found


def synchronize() -> None:
    """Wait until every rank is here."""
    if ranks() > 1:
        dist.barrier()


def share_cores() -> None:
    """Give each process of this machine its part of the cores, unless ``OMP_NUM_THREADS`` says how many.

    Left to itself, every process takes all cores, and they wait for each other.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // here))
