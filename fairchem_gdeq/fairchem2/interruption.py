"""What a run does when a signal ends it: the newest checkpoint is named as that to go on from."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairchem_gdeq.training.ranks import rank

INTERRUPTED = 75  # exit status (EX_TEMPFAIL): the same command goes on
PATIENCE = 5.0  # seconds that other ranks give the first


@contextmanager
def ending(stopped: Callable[[], bool]) -> Iterator[None]:
    """What a signal makes of the code inside ends as an interruption.

    Args:
        stopped: whether fairchem's handler of a local run's signals has run.

    Raises:
        SystemExit: it has, or submitit's has.
    """
    try:
        yield
    except SystemExit as stop:
        # fairchem's handler of signals ends with 0, and what comes after a run would go on.
        raise SystemExit(stop.code or INTERRUPTED) from stop
    except Exception as error:
        # It also takes the ranks apart. Where torch was writing a checkpoint, it holds the exit back,
        # misses the other ranks, and says only that.
        if not stopped():
            raise
        raise SystemExit(INTERRUPTED) from error


def name_newest(folder: Path, link: Callable[[], bool], local: bool) -> bool:
    """Have ``folder`` be a link to the newest checkpoint; whether it is one.

    A signal reaches every rank of a local run, and fairchem's handler makes the folder on each of them,
    where its own code, ``link``, expects nothing. So the first rank alone links, until no other comes in
    between.

    Args:
        folder: fairchem's for the state at an interruption.
        link: of fairchem, on this rank.
        local: nothing but a signal calls this, and a second one would begin it again. (Slurm's come by
            submitit, which needs them.)
    """
    if local:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
    if rank() > 0:
        end = time.monotonic() + PATIENCE
        while not folder.is_symlink() and time.monotonic() < end:
            time.sleep(0.05)
        return folder.is_symlink()
    while True:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        try:
            linked = link()
        except (FileExistsError, IsADirectoryError, PermissionError):
            # A rank that has come to it only now has made the folder, which `link` cannot remove
            # (macOS says that with PermissionError).
            if folder.is_symlink() or not folder.is_dir():
                raise
            continue
        logging.info("interrupted: start the same command again to go on from the checkpoint")
        return linked
