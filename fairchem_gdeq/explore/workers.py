"""A task over many items, in this process or in others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def over(
    task: Callable[[Item], Iterable[Result]], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """What a task gives for each item, as it comes.

    Args:
        task: a generator function or what acts as one; it is pickled for other processes.
        items: likewise.
        workers: 1: here, in order; more: so many processes, of one thread each unless
            ``OMP_NUM_THREADS`` says otherwise, in any order.

    Raises:
        RuntimeError: a process was killed.
    """
    if workers == 1:
        for item in items:
            yield from task(item)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when a process begins
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts)
    try:
        for done in as_completed([pool.submit(_listed, task, item) for item in items]):
            yield from done.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, perhaps for want of memory: choose fewer --workers. The same "
            "command goes on from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process


def _listed(task: Callable[[Item], Iterable[Result]], item: Item) -> list[Result]:
    return list(task(item))
