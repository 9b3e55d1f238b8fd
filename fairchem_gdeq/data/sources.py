"""Which reader a path needs."""

from __future__ import annotations

from pathlib import Path

from fairchem_gdeq.data.legacy import LegacySource
from fairchem_gdeq.data.parts import Part, PartSource
from fairchem_gdeq.data.reading import Source
from fairchem_gdeq.data.rows import TARGET
from fairchem_gdeq.data.trajectories import TrajectorySource

DATABASES = (".aselmdb", ".db")


def open_source(
    path: str | Path, target_key: str | None = TARGET, part: Part | None = None
) -> Source:
    """The rows of a file or folder, or of a part of it.

    Args:
        path: told by what it holds: ASE databases, LMDBs, trajectories.
        target_key: of the relaxed positions.
        part: the rows that are wanted; None: all.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a single file of another kind.
    """
    whole = _open(Path(path), target_key)
    return whole if part is None else PartSource(whole, part)


def _open(path: Path, target_key: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (working folder {Path.cwd()})")
    names = [path.name] if path.is_file() else [each.name for each in path.iterdir()]
    if any(name.endswith(DATABASES) for name in names):
        # Not at the top: the other readers, and their worker processes, do without fairchem.
        from fairchem_gdeq.data.database import DatabaseSource

        return DatabaseSource({"src": str(path)}, target_key)
    if any(name.endswith(".lmdb") for name in names):
        return LegacySource(path, target_key)
    if path.is_file():
        raise ValueError(
            f"{path}: expected {', '.join(DATABASES)}, .lmdb, or a folder of them or of trajectories"
        )
    return TrajectorySource(path, target_key)
