"""Last adjoint of every structure seen: what its next adjoint solve starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fairchem_gdeq.relax import SignalReport
from fairchem_gdeq.training.in_use import whole_file
from fairchem_gdeq.training.ranks import rank, ranks

NAME = "adjoints"  # of the files, one a rank


class Adjoints:
    """Adjoints u [n, 3] by the rows of their structures in the data set, on the CPU.

    A rank knows those of the structures that it has seen itself.
    """

    def __init__(self) -> None:
        self.known: dict[int, Tensor] = {}

    def recall(self, rows: Sequence[int], sizes: list[int], like: Tensor) -> Tensor | None:
        """Those of a batch [n, 3], in the dtype and on the device of ``like``; None if none is known.

        Zero where a structure is unknown or what is known has another number of atoms, as after a
        change of the data set.
        """
        parts = [self.known.get(row) for row in rows]
        fits = [u is not None and len(u) == n for u, n in zip(parts, sizes, strict=True)]
        if not any(fits):
            return None
        return torch.cat(
            [
                u if u is not None and fit else torch.zeros(n, 3)
                for u, fit, n in zip(parts, fits, sizes, strict=True)
            ]
        ).to(like)

    def keep(self, rows: Sequence[int], sizes: list[int], report: SignalReport) -> None:
        """Remember those that solved their system."""
        parts = report.adjoint.detach().cpu().split(sizes)
        for row, part, good in zip(rows, parts, report.contributing.tolist(), strict=True):
            if good:
                self.known[row] = part.clone()  # a view: a part of the batch would keep all of it

    def save(self, folder: Path) -> None:
        """Write this rank's into a folder that all ranks write into; nothing if there are none."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{NAME}.{rank()}of{ranks()}.pt"
        if rank() == 0:  # those of a run with another number of ranks
            for other in folder.glob(f"{NAME}.*.pt"):
                if not other.stem.endswith(f"of{ranks()}"):
                    other.unlink()
        if not self.known:
            path.unlink(missing_ok=True)
            return
        sizes = torch.tensor([len(u) for u in self.known.values()])
        stored = {"rows": torch.tensor(list(self.known)), "sizes": sizes}
        with whole_file(path) as part:
            torch.save(stored | {"adjoints": torch.cat(list(self.known.values()))}, part)

    def load(self, folder: Path) -> None:
        """Take up what ``save`` has written.

        Each rank what was its own, so that the run goes on as it would have; where another number
        of ranks wrote, every rank takes all.
        """
        mine = folder / f"{NAME}.{rank()}of{ranks()}.pt"
        same = any(folder.glob(f"{NAME}.*of{ranks()}.pt"))
        paths = [mine] if mine.is_file() else [] if same else sorted(folder.glob(f"{NAME}.*.pt"))
        self.known = {}
        for path in paths:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            parts = stored["adjoints"].split(stored["sizes"].tolist())
            self.known |= {
                row: part.clone() for row, part in zip(stored["rows"].tolist(), parts, strict=True)
            }
