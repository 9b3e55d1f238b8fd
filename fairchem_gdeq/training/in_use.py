"""One process at a time does one thing in a run's folder; and what is said where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fairchem_gdeq.training.ranks import from_the_first

# How long a process waits for one that it cannot see: data workers outlive a killed process for seconds,
# and file systems of a network give up what a dead node held when they notice.
WAIT = 60.0  # seconds
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # nothing but writing ends so
DENIED = {errno.EACCES, errno.EPERM}  # reading as well
OF_TORCH = (
    "inline_container.cc",
    "cannot be opened",
)  # in what it says of a full disk, or no folder


@contextmanager
def in_use(folder: Path, purpose: str) -> Iterator[None]:
    """Hold a folder for one purpose; all ranks enter. Whatever ends the process gives it up.

    Args:
        folder: of the run; it is made.
        purpose: such as ``train``; two purposes do not exclude each other.

    Raises:
        ValueError: another process has it; says which, and what to do.
        OSError: the folder cannot be written.
    """
    lock = FileLock(folder / f".{purpose}.lock")
    holder = folder / f".{purpose}.holder.json"
    try:
        if text := from_the_first(lambda: _taken(lock, holder)):
            raise ValueError(text)
        yield
    except OSError as error:
        if (said := _said_of(error, folder)) is None:
            raise
        raise OSError(said) from error
    finally:
        if lock.is_locked:  # on rank 0, and where nobody else has it
            holder.unlink(missing_ok=True)
            lock.release()


def _said_of(error: OSError, folder: Path) -> str | None:
    """What to say of an error while a run has its folder; None where it is not of what may be opened."""
    name = error.filename
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
    within = Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
    if error.errno in FULL or (error.errno in DENIED and within):
        return cannot_write(place, error)
    if error.errno in DENIED:
        return (
            f"{place}: expected a file that may be opened, found that it may not "
            f"({error.strerror}). Have its owner allow it, or name another"
        )
    return None


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Errors inside name the file: Python names it where one is opened, and not where it is written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write into, which takes its name at the end, if that comes."""
    part = path.with_name(f"{path.name}.part")
    with naming(part):
        yield part
    part.replace(path)


def unwritten(error: BaseException) -> bool:
    """Whether something could not be written, which torch's own file format says in a RuntimeError."""
    text = str(error)
    return isinstance(error, OSError) or (
        isinstance(error, RuntimeError) and any(words in text for words in OF_TORCH)
    )


def cannot_write(place: Path, error: BaseException) -> str:
    """What to say of a file or folder that could not be written."""
    folder = next(each for each in (place, *place.absolute().parents) if each.is_dir())
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    free = shutil.disk_usage(folder).free / 1e6
    closed = isinstance(error, OSError) and error.errno in {*DENIED, errno.EROFS}
    return (
        f"{place} could not be written ({reason}); {free:.0f} MB are free there. What was saved before "
        f"is whole: {'allow writing there' if closed else 'make room'}, and start the same command "
        "again to go on from it"
    )


def _taken(lock: FileLock, holder: Path) -> str | None:
    """Take the lock, or say who has it."""
    holder.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + WAIT
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            found = _read(holder)
            if _alive(found) or time.monotonic() > end:
                who, where, since, what = (
                    found.get(key, "(unknown)")
                    for key in ("process", "machine", "since", "command")
                )
                text = (
                    f"{holder.parent} is in use by process {who} on {where} since {since}: {what}. Wait "
                    "for it, stop it, or choose another folder with job.timestamp_id=NAME "
                    "(fairchem-core 1: --task.run_id=NAME)"
                )
                # Some file systems of a network cannot lock, and then nobody gives up for a dead node.
                there = where == socket.gethostname()
                return text if there else f"{text}. If it is dead, remove {lock.lock_file}"
            time.sleep(0.2)
    mine = {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    with naming(holder):
        holder.write_text(json.dumps(mine))
    return None


def _read(holder: Path) -> dict[str, object]:
    """Who has it, as far as it is written."""
    try:
        found = json.loads(holder.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(found: dict[str, object]) -> bool:
    """Whether this machine has the process that is named."""
    process = found.get("process")
    if found.get("machine") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
