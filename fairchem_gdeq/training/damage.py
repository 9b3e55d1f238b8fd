"""Files that are not what was written: cut short, lost, or changed by a disk."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

SUMS = "checksums.json"  # of the other files of a checkpoint, but for
# what no run goes on from: the model by itself, which is large, and the config, which may be edited.
LEFT_OUT = ("inference_ckpt.pt", "resume.yaml")
BLOCK = 1 << 22  # bytes read at a time


def damage_of_file(path: Path) -> str | None:
    """What is wrong with a file of ``torch.save``; None where it is what was written."""
    if not path.is_file():
        return "no such file"
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return reason_of(error)
    return part and f"its part {part} is not what was written"


def reason_of(error: BaseException) -> str:
    """In a line: of torch's collection of all ranks' errors the last, of others the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if isinstance(error, CheckpointException) else lines[0]


def write_sums(checkpoint: Path) -> None:
    """Keep the checksums of what is in a checkpoint, once all ranks have written."""
    files = sorted(p for p in checkpoint.iterdir() if p.is_file() and p.name not in LEFT_OUT)
    (checkpoint / SUMS).write_text(json.dumps({path.name: _sum(path) for path in files}, indent=1))


def changed(checkpoint: Path) -> str | None:
    """Which file is not what was written, by the checksums; older checkpoints have none."""
    kept = checkpoint / SUMS
    if not kept.is_file():
        return None
    for name, expected in json.loads(kept.read_text()).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != expected:
            return f"{name} has {path.stat().st_size} bytes, and not those that were written"
    return None


def _sum(path: Path) -> str:
    """Quick rather than safe from forgers: all ranks wait for it at every checkpoint."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
