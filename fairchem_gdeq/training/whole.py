"""The checkpoint that a run goes on from: the newest that is whole."""

from __future__ import annotations

import logging
from pathlib import Path

from fairchem.core.common.utils import get_subdirectories_sorted_by_time
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from fairchem_gdeq.training.checkpoint_files import open_checkpoint
from fairchem_gdeq.training.damage import changed, reason_of
from fairchem_gdeq.training.history import STATE

METADATA = ".metadata"  # torch writes it last
LINK = "preemption_state"  # fairchem's, to the newest at an interruption, which may be gone by now
BEGUN_WITH = "begun_with.txt"  # beside the checkpoints: the one of another run that this began with


def newest_whole(folder: Path, asked: str | None) -> Path | None:
    """Where a run goes on from; None: there is nothing, so it begins. What is damaged is named.

    Args:
        folder: of the run's checkpoints.
        asked: a checkpoint that is asked for. One of another folder is where a run begins: it is taken
            as it is, until the run has one of its own. It is remembered, since a job that Slurm begins
            again does not ask for it any more.

    Raises:
        ValueError: there are checkpoints, and none of them is whole; or the one that is asked for is of
            this run, and not there.
    """
    first = [] if asked is None else [Path(asked).resolve()]
    another = first.pop() if first and folder.resolve() not in first[0].parents else None
    if first and asked is not None and Path(asked).name != LINK and not first[0].exists():
        raise ValueError(
            f"job.runner_state_path={asked}: expected a checkpoint, found that it is not there. Leave it "
            "out, and the run goes on from its newest one"
        )
    found = [Path(path) for path, _ in get_subdirectories_sorted_by_time(str(folder))]
    newest = [path for path in reversed(found) if not path.is_symlink()]
    damaged = []
    for path in dict.fromkeys([*first, *newest]):
        if not (path / METADATA).is_file():
            if path.name.endswith(".partial"):
                logging.info(
                    f"{path}: left by a run that was killed while it wrote; it is not used"
                )
            continue
        if (reason := damage(path)) is None:
            return path
        damaged.append(f"{path} ({reason})")
        logging.warning(f"checkpoint {damaged[-1]} is damaged: looking for one before it")
    if damaged:
        raise ValueError(
            f"no checkpoint of {folder} is whole: {'; '.join(damaged)}. Remove that folder to begin "
            "anew, or choose another with job.timestamp_id=NAME"
        )
    return _begun_with(folder / BEGUN_WITH, another)


def _begun_with(kept: Path, another: Path | None) -> Path | None:
    """The checkpoint of another run that this one begins with, or was to begin with when it was asked."""
    if another is None and kept.is_file():
        return Path(kept.read_text().strip())
    # A name that was mistyped is not kept.
    if another is not None and (another / METADATA).is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"{another}\n")
    return another


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where all that it should hold is there."""
    try:
        if reason := changed(checkpoint):
            return reason
        parts = FileSystemReader(checkpoint).read_metadata().storage_data or {}
        for part in parts.values():
            file, expected = checkpoint / part.relative_path, part.offset + part.length
            size = file.stat().st_size
            if size < expected:
                return f"{file.name} has {size} bytes, expected at least {expected}"
        open_checkpoint(checkpoint / STATE)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        return reason_of(error)
    return None
