"""Folders that are replaced as a whole, so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from fairchem_gdeq.training.in_use import cannot_write, unwritten
from fairchem_gdeq.training.ranks import rank, synchronize

LEFTOVERS = (".partial", ".old")  # ends of the names of folders that a kill leaves


def remove(folder: Path) -> None:
    """Delete a checkpoint, or nothing where there is none.

    fairchem goes on from the folder with a ``.metadata`` that was changed last, and deleting a file in a
    folder changes it. So that one goes first: what a kill leaves behind is then taken for no checkpoint.
    """
    (folder / ".metadata").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Undo the first half of a swap of ``replacing`` that a kill has cut in two; one process calls it."""
    old = folder.with_name(folder.name + LEFTOVERS[1])
    if not folder.exists() and old.exists():
        os.replace(old, folder)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``folder`` at the end.

    All ranks enter it. What a kill leaves whole is the old folder, or the new one under this name or with
    ``.partial`` at its end; the next call takes that away once it has written its own.

    Whatever is raised inside, the old folder stays.

    Raises:
        OSError: something cannot be written, which torch says in many ways.
        SystemExit, KeyboardInterrupt: a signal has ended it, which torch would say as its own error.
    """
    partial, old = (folder.with_name(folder.name + end) for end in LEFTOVERS)
    if rank() == 0:
        if partial.exists():  # a run may have gone on from it, and it may be all that there is
            remove(old)
            os.replace(partial, old)
        partial.mkdir(parents=True)
    synchronize()
    try:
        yield partial
    except CheckpointException as errors:  # of the ranks that failed
        causes = [cause for cause, _ in errors.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception):
                raise cause from errors
        if not all(map(unwritten, causes)):
            raise
        raise OSError(cannot_write(folder, causes[0])) from errors
    except (OSError, RuntimeError) as error:
        if not unwritten(error):
            raise
        raise OSError(cannot_write(folder, error)) from error
    synchronize()
    if rank() == 0:
        if folder.exists():
            remove(old)
            os.replace(folder, old)
        os.replace(partial, folder)
        remove(old)
    synchronize()
