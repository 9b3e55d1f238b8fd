"""Relaxing any number of dataset rows in flight: records, positions, and numbers to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import ase
import torch
from torch import Tensor
from tqdm import tqdm

from fairchem_gdeq.batching.streams import Outcome, Request, Stream
from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.task import Batch, RelaxationTask, labels_of, to_ase
from fairchem_gdeq.relax import ForceField
from fairchem_gdeq.relax.packs import Evaluation, Pack
from fairchem_gdeq.relax.segments import to_device

# Called with a row, the number of its force evaluations before, positions [n, 3] (Angstrom) and forces
# [n, 3] there (eV/Angstrom) as the field gives them; both on the host.
Observe = Callable[[Batch, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Relaxed:
    """One row with what became of it.

    Attributes:
        row: a batch of one structure, at its start, on the host.
        record: how it ended; measured from its start where the row has no target.
        outcome: its positions, and whether memory sufficed for it.
    """

    row: Batch
    record: Record
    outcome: Outcome

    def to_ase(self) -> ase.Atoms:
        """The relaxed structure, with how it ended in ``info``."""
        (atoms,) = to_ase(self.row, self.outcome.positions)
        atoms.info = {
            "sid": self.record.sid,
            "row": self.record.row,
            "converged": self.record.converged,
            "diverged": self.record.diverged,
            "cause": self.record.cause,
            "failed": not self.outcome.fitted,
            "evaluations": self.record.evaluations,
            "max_force": self.record.residual,
        }
        return atoms


def score(is2rs: RelaxationTask, row: Batch, request: Request, outcome: Outcome) -> Record:
    """The record of one row; all of it is on the host. One that did not fit counts as diverged."""
    how = {
        "converged": outcome.converged,
        "cause": outcome.cause,
        "evaluations": outcome.evaluations,
        "residual": outcome.residual,
    }
    (record,) = measure(
        labels_of(row),
        outcome.positions,
        row.pos_relaxed if "pos_relaxed" in row else row.pos,
        is2rs.structures(row),
        torch.tensor(request.operator.pinned),
        start=row.pos,
        **{key: torch.tensor([value]) for key, value in how.items()},
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
        field_of: Callable[[Batch], ForceField],
        budget: int,
        device: torch.device | str,
        observe: Observe | None = None,
    ) -> None:
        """
        Args:
            is2rs: says how structures are relaxed.
            field_of: the potential on a row of the host, unfrozen and on ``device``; no graph is built.
            budget: atoms evaluated together.
            device: where structures are relaxed. Rows stay on the host.
            observe: told of every force evaluation of every structure.
        """
        self.is2rs, self.field_of = is2rs, field_of
        self.device, self.observe = device, observe
        self.done = self.converged = self.failed = self.evaluations = 0
        self._requested: dict[int, tuple[Batch, Request]] = {}
        self._alpha: Tensor | None = None
        self._stream = Stream((), is2rs.relaxer, budget)

    def relax(self, rows: Iterable[Batch]) -> Iterator[Relaxed]:
        """Rows (batches of one structure) as they end; pulled when there is room for them."""
        observe = None if self.observe is None else self._observe
        requests, relaxer = self._requests(rows), self.is2rs.relaxer
        self._stream = Stream(requests, relaxer, self._stream.budget, observe)
        for outcome in self._stream:
            row, request = self._requested.pop(outcome.key)
            record = score(self.is2rs, row, request, outcome)
            self.done += 1
            self.converged += record.converged
            self.failed += not outcome.fitted
            self.evaluations += record.evaluations
            yield Relaxed(row, record, outcome)

    def show(self, bar: tqdm) -> None:
        """One more on the progress bar, with the numbers that matter."""
        numbers = {
            "converged": f"{self.converged / self.done:.0%}",
            "evaluations": f"{self.evaluations / self.done:.1f}",
            "in_flight": self._stream.in_flight,
        }
        bar.set_postfix(numbers | ({"failed": self.failed} if self.failed else {}), refresh=False)
        bar.update()

    def _observe(self, pack: Pack, now: Evaluation) -> None:
        assert self.observe is not None
        places, forces = (x.cpu().split(pack.sizes) for x in (pack.positions, now.raw))
        for key, *seen in zip(pack.keys, pack.evaluations.tolist(), places, forces, strict=True):
            self.observe(self._requested[key][0], *seen)

    def _requests(self, rows: Iterable[Batch]) -> Iterator[Request]:
        for key, row in enumerate(rows):
            if self._alpha is None:
                alpha = torch.tensor(self.is2rs.alpha, dtype=row.pos.dtype)
                self._alpha = to_device(alpha, torch.device(self.device))
            request = self.is2rs.request_of(key, self.field_of(row), row, self._alpha)
            self._requested[key] = row, request
            yield request
