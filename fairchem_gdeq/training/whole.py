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
from fairchem_gdeq.training.in_use import whole_file

METADATA = ".metadata"  # torch writes it last
LINK = "preemption_state"  # fairchem's, to the newest at an interruption, which may be gone by now
BEGUN_WITH = "begun_with.txt"  # beside the checkpoints: the one of another run that this began with


def newest_whole(folder: Path, asked: str | None) -> Path | None:
    """Where a run goes on from; None: there is nothing, so it begins. What is damaged is named.

    Args:
        folder: of the run's checkpoints.
        asked: a checkpoint that is asked for. One of another folder is where a run begins: it is taken
            as it is, until the run has one of its own. Where none is asked for, it is the remembered one.

    Raises:
        ValueError: there are checkpoints, and none of them is whole; or one of this run is asked for, and
            there is none.
    """
    first = [] if asked is None else [Path(asked).resolve()]
    another = first.pop() if first and folder.resolve() not in first[0].parents else None
    gone = bool(first) and Path(str(asked)).name != LINK and not first[0].exists()
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
            if gone:
                logging.warning(
                    f"{asked}: this checkpoint is not there any more; another one is taken"
                )
            return path
        damaged.append(f"{path} ({reason})")
        logging.warning(f"checkpoint {damaged[-1]} is damaged: looking for one before it")
    if damaged:
        raise ValueError(
            f"no checkpoint of {folder} is whole: {'; '.join(damaged)}. Remove that folder to begin "
            "anew, or choose another with job.timestamp_id=NAME"
        )
    if gone:
        raise ValueError(
            f"job.runner_state_path={asked}: expected a checkpoint, found that it is not there, and no "
            "other one of this run. Leave it out to begin anew"
        )
    if another is None and (folder / BEGUN_WITH).is_file():
        return Path((folder / BEGUN_WITH).read_text().strip())
    return another


def remember(folder: Path, another: Path) -> None:
    """Keep the checkpoint of another run that this one begins with; one process calls it.

    A job that Slurm begins again is not told of it any more.

    Args:
        folder: of the run's checkpoints.
        another: that checkpoint. A name that was mistyped is not kept.
    """
    if (another / METADATA).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / BEGUN_WITH) as part:
            part.write_text(f"{another}\n")


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
