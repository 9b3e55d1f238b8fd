"""Relaxing any number of dataset rows in flight: records, positions, and numbers to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import ase
import torch
from torch import Tensor
from tqdm import tqdm

from fairchem_gdeq.metrics import Record, measure
from fairchem_gdeq.relax import Arrival, Ending, ForceField, Stream
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.task import Batch, RelaxationTask, labels_of, to_ase


@dataclass(frozen=True)
class Relaxed:
    """One row with what became of it.

    Attributes:
        row: a batch of one structure, at its start, on the host.
        record: how it ended; measured from its start where the row has no target.
        ending: its positions, and whether memory sufficed for it.
    """

    row: Batch
    record: Record
    ending: Ending

    def to_ase(self) -> ase.Atoms:
        """The relaxed structure, with how it ended in ``info``."""
        (atoms,) = to_ase(self.row, self.ending.positions)
        atoms.info = {
            "sid": self.record.sid,
            "row": self.record.row,
            "converged": self.record.converged,
            "diverged": self.record.diverged,
            "failed": not self.ending.fitted,
            "evaluations": self.record.evaluations,
            "max_force": self.record.residual,
        }
        return atoms


def score(is2rs: RelaxationTask, row: Batch, arrival: Arrival, ending: Ending) -> Record:
    """The record of one row; all of it is on the host."""
    values = (ending.converged, ending.diverged, ending.evaluations, ending.residual)
    (record,) = measure(
        labels_of(row),
        ending.positions,
        row.pos_relaxed if "pos_relaxed" in row else row.pos,
        is2rs.structures(row),
        torch.tensor(arrival.operator.pinned),
        *(torch.tensor([value]) for value in values),
    )
    return record


class Bulk:
    """Relaxes rows with one model and counts what became of them.

    Attributes:
        done, converged, failed: structures that have ended; of those, the ones below fmax and the
            ones that memory did not suffice for.
        evaluations: force evaluations of those that have ended.
    """

    def __init__(
        self,
        is2rs: RelaxationTask,
        follow: Callable[[Batch], ForceField],
        budget: int,
        device: torch.device | str,
    ) -> None:
        """
        Args:
            is2rs: says how structures are relaxed.
            follow: the potential on a row of the host, thawed and on ``device``; no graph is built.
            budget: atoms evaluated together.
            device: where structures are relaxed. Rows stay on the host.
        """
        self.is2rs, self.follow = is2rs, follow
        self.device = device
        self.done = self.converged = self.failed = self.evaluations = 0
        self._arrived: dict[int, tuple[Batch, Arrival]] = {}
        self._alpha: Tensor | None = None
        self._stream = Stream((), is2rs.relaxer.course, budget)

    def relax(self, rows: Iterable[Batch]) -> Iterator[Relaxed]:
        """Rows (batches of one structure) as they end; pulled when there is room for them."""
        self._stream = Stream(self._arrivals(rows), self.is2rs.relaxer.course, self._stream.budget)
        for ending in self._stream:
            row, arrival = self._arrived.pop(ending.key)
            record = score(self.is2rs, row, arrival, ending)
            self.done += 1
            self.converged += record.converged
            self.failed += not ending.fitted
            self.evaluations += record.evaluations
            yield Relaxed(row, record, ending)

    def show(self, bar: tqdm) -> None:
        """One more on the progress bar, with the numbers that matter."""
        numbers = {
            "converged": f"{self.converged / self.done:.0%}",
            "evaluations": f"{self.evaluations / self.done:.1f}",
            "in_flight": self._stream.in_flight,
        }
        bar.set_postfix(numbers | ({"failed": self.failed} if self.failed else {}), refresh=False)
        bar.update()

    def _arrivals(self, rows: Iterable[Batch]) -> Iterator[Arrival]:
        for key, row in enumerate(rows):
            if self._alpha is None:
                alpha = torch.tensor(self.is2rs.alpha, dtype=row.pos.dtype)
                self._alpha = to_device(alpha, torch.device(self.device))
            arrival = self.is2rs.arrival_of(key, self.follow(row), row, self._alpha)
            self._arrived[key] = row, arrival
            yield arrival
