"""Folders of relaxations that ASE can read: first frame the start, last frame the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.io import read

from fairchem_gdeq.data.rows import TARGET, BadRow, check_pair

KEPT = ("charge", "spin")  # of a frame's info: what fairchem reads


class TrajectorySource:
    """One row a file, sorted by path; sid is the path within its folder, without suffix.

    The first frame's constraints and tags are kept. Its energy and forces are not: rows of the
    other formats have none, and a batch needs the same fields in all rows.
    """

    def __init__(
        self,
        folder: str | Path | Sequence[str | Path],
        target_key: str | None = TARGET,
        pattern: str = "**/*",
    ) -> None:
        """List the files that match ``pattern``, hidden ones and ``metadata.npz`` left out.

        Args:
            folder: or several of them.
            target_key: None: there are no targets.
            pattern: within each folder.

        Raises:
            FileNotFoundError: no such folder, or nothing in it matches.
        """
        self.target_key = None if target_key is None else TARGET
        folders = [folder] if isinstance(folder, str | Path) else folder
        found = [_files(Path(each), pattern) for each in folders]
        self.files = [path for paths in found for path in paths]
        self._folders = [
            Path(each) for each, paths in zip(folders, found, strict=True) for _ in paths
        ]

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def read(self, index: int) -> Atoms:
        """The start with its target.

        Raises:
            BadRow: one frame only, or the last has other atoms, order or cell than the first.
        """
        path = self.files[index]
        first = _frames(path, slice(0, 2))
        if not first:
            raise BadRow(self.where(index), "no frames")
        start: Atoms = first[0].copy()  # a copy has no calculator
        sid = path.relative_to(self._folders[index]).with_suffix("").as_posix()
        start.info = {"sid": sid} | {key: start.info[key] for key in KEPT if key in start.info}
        if self.target_key is not None:
            if len(first) < 2:
                raise BadRow(self.where(index), "one frame only, so there is no target")
            (target,) = _frames(path, -1)
            check_pair(start, target, f"{self.where(index)}, structure {sid}")
            start.info[TARGET] = target.positions.copy()
        return start


def _files(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of trajectories")
    files = sorted(
        path
        for path in folder.glob(pattern)
        if path.is_file() and not path.name.startswith(".") and path.name != "metadata.npz"
    )
    if not files:
        raise FileNotFoundError(f"{folder}: no file matches {pattern!r}")
    return files


def _frames(path: Path, which: int | slice) -> list[Atoms]:
    """Frames of a file; one that is picked by its number is a list too."""
    found = read(path, which)
    return found if isinstance(found, list) else [found]
