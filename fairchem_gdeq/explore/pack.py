"""The force data set of the labelled frames, and what there is to say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from fairchem_gdeq.data.writer import Chunk, PartialFile, encode_row
from fairchem_gdeq.explore.records import Folder, Record, replaced

DATA, METADATA = "data.aselmdb", "metadata.npz"
LARGEST = 20.0  # eV/Angstrom: frames with more would outweigh all others


@dataclass
class Summary:
    """What an exploration has come to.

    Attributes:
        structures: all that have a record.
        codes: how many relaxations ended in each way.
        right: structures left out since they ended in the right basin.
        frames: chosen ones.
        repeated: frames left out, as close to a chosen one.
        large: labelled frames left out for a large force.
        failed: names of frames on which the reference failed, with the reason.
        unlabelled: frames without a label otherwise.
        packed: frames in the data set.
        errors, ends: of the packed frames and of those at the ends of paths, the model's mean absolute
            error of a free atom's force component, eV/Angstrom.
    """

    structures: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    right: int = 0
    frames: int = 0
    repeated: int = 0
    large: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    packed: int = 0
    errors: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, record: Record, largest: float) -> list[int]:
        """Count a structure; its frames for the data set."""
        self.structures += 1
        self.codes[record.code] += 1
        self.right += record.right
        self.frames += len(record.steps)
        self.repeated += record.repeated
        kept = []
        for k, labelled in enumerate(record.labelled):
            if record.failures[k]:
                self.failed[record.sid(k)] = str(record.failures[k])
            elif not labelled:
                self.unlabelled += 1
            elif not np.linalg.norm(record.forces[k][record.free], axis=1).max(initial=0) < largest:
                self.large += 1
            else:
                kept.append(k)
                wrong = float(np.abs(record.forces[k] - record.predicted[k])[record.free].mean())
                self.errors.append(wrong)
                if record.steps[k] == record.last:
                    self.ends.append(wrong)
        self.packed += len(kept)
        return kept

    def show(self, calls: int, largest: float = LARGEST, console: Console | None = None) -> None:
        """Print it as a table.

        Args:
            calls: of the reference, in this run.
            largest: bound on forces, eV/Angstrom.
            console: where; the terminal by default.
        """
        table = Table(title="explored", title_justify="left", show_header=False)
        table.add_column("what")
        table.add_column("number", justify="right")
        for what, number in self._rows(calls, largest):
            table.add_row(what, number)
        (console or Console()).print(table)

    def _rows(self, calls: int, largest: float) -> Iterable[tuple[str, str]]:
        yield "structures", str(self.structures)
        for code, number in sorted(self.codes.items()):
            yield f"  {code}", str(number)
        if self.right:
            yield "  ended right, left out", str(self.right)
        yield "frames chosen", str(self.frames)
        yield "frames dropped as repeats", str(self.repeated)
        yield f"frames dropped for a force of {largest:g} eV/Angstrom or more", str(self.large)
        yield "frames on which the reference failed", str(len(self.failed))
        yield "frames without a label yet", str(self.unlabelled)
        yield "frames in the data set", str(self.packed)
        yield "reference calls, in this run", str(calls)
        for what, errors in (("all frames", self.errors), ("ends of paths", self.ends)):
            said = f"{np.mean(errors):.4f}" if errors else "-"
            yield f"force error of the model, {what} (mean abs., eV/Angstrom)", said


def pack(folder: Folder, largest: float = LARGEST) -> Summary:
    """Write ``data.aselmdb`` and ``metadata.npz`` of all labelled frames in the folder.

    They are written beside and take the place of earlier ones at the end. Without a labelled frame
    there is none.

    Args:
        folder: which keeps the records.
        largest: frames with such a force on a free atom, or more, are left out, eV/Angstrom.

    Raises:
        FileNotFoundError: nothing was explored into the folder.
    """
    if not folder.structures.is_dir():
        raise FileNotFoundError(
            f"{folder.path}: nothing was explored into it ({folder.structures})"
        )
    summary = Summary()
    begun = folder.path / f"{DATA}.partial"
    begun.unlink(missing_ok=True)  # of an interrupted run; labels may have come since
    partial = PartialFile(begun, {})
    try:
        for _, record in folder.records():
            frames = [record.frame(k) for k in summary.add(record, largest)]
            sids = [str(frame.info["sid"]) for frame in frames]
            rows = [encode_row(frame, None) for frame in frames]
            if rows:
                partial.append(Chunk(rows, [len(frame) for frame in frames], sids))
        if not partial.natoms:
            (folder.path / DATA).unlink(missing_ok=True)
            (folder.path / METADATA).unlink(missing_ok=True)
            return summary
        with replaced(folder.path / METADATA) as part:
            partial.finish({"fairchem_gdeq": {"explored": summary.structures}}, folder.path / DATA)
            with part.open("wb") as stream:
                np.savez(stream, natoms=np.array(partial.natoms))
    finally:
        partial.close()
        begun.unlink(missing_ok=True)
    return summary
