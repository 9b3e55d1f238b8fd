"""What a run does when a signal ends it: the newest checkpoint is named as that to go on from."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fairchem_gdeq.training.ranks import rank

PATIENCE = 5.0  # seconds that other ranks give the first


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
        except FileExistsError:  # by a rank that has come to it only now
            continue
        logging.info("interrupted: start the same command again to go on from the checkpoint")
        return linked
