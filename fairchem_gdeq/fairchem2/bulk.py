"""Relaxing any number of dataset rows in flight: records, positions, and numbers to watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import ase
import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch.utils.data import DataLoader
from tqdm import tqdm

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.fairchem2.graphs import with_positions
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.metrics import Record, measure
from fairchem_gdeq.relax import Arrival, Ending, Stream


@dataclass(frozen=True)
class Relaxed:
    """One row with what became of it.

    Attributes:
        row: a batch of one structure, at its start.
        record: how it ended; measured from its start where the row has no target.
        ending: its positions, and whether memory sufficed for it.
    """

    row: AtomicData
    record: Record
    ending: Ending

    def to_ase(self) -> ase.Atoms:
        """The relaxed structure, with how it ended in ``info``."""
        (atoms,) = with_positions(self.row, self.ending.positions).cpu().to_ase()
        atoms.calc = None
        atoms.info = {
            "sid": self.record.sid,
            "converged": self.record.converged,
            "diverged": self.record.diverged,
            "failed": not self.ending.fitted,
            "evaluations": self.record.evaluations,
            "max_force": self.record.residual,
        }
        return atoms


def rows_of(loader: DataLoader) -> Iterator[AtomicData]:
    """The structures of a loader's batches as batches of one, in order."""
    for batch in loader:
        if batch.num_graphs == 1:
            yield batch
        else:
            yield from (collate([batch.get_example(i)]) for i in range(batch.num_graphs))


def row_count(loader: DataLoader) -> int:
    """Structures that a loader gives this rank."""
    return sum(len(indices) for indices in loader.batch_sampler)


def left_out(loader: DataLoader) -> str | None:
    """Which structures fairchem's sampler gives to no rank because they exceed its batch; or None."""
    batches = getattr(loader.batch_sampler, "all_batches", None)
    if batches is None:
        return None
    missing = sorted(set(range(len(loader.dataset))) - {i for batch in batches for i in batch})
    if not missing:
        return None
    sizes = loader.dataset.get_metadata("natoms", missing)
    first = loader.dataset[missing[0]]
    return (
        f"{len(missing)} of {len(loader.dataset)} structures have more atoms than a batch may "
        f"({loader.batch_sampler.max_atoms}): up to {max(sizes)}; the first is {first.sid[0]}"
    )


def atom_budget(loader: DataLoader) -> int:
    """Atoms that the loader puts into one batch, and the stream into one pack.

    Raises:
        ValueError: the loader packs by something else.
    """
    budget = getattr(loader.batch_sampler, "max_atoms", None)
    if budget is None:
        raise ValueError(
            f"{type(loader.batch_sampler).__name__} has no max_atoms: give the loader fairchem's "
            "MaxAtomDistributedBatchSampler, whose max_atoms is also the size of evaluation packs"
        )
    return int(budget)


def score(row: AtomicData, arrival: Arrival, ending: Ending) -> Record:
    """The record of one row."""
    values = (ending.converged, ending.diverged, ending.evaluations, ending.residual)
    (record,) = measure(
        [str(row.sid[0])],
        ending.positions,
        row.pos_relaxed if "pos_relaxed" in row else row.pos,
        arrival.operator.structures,
        arrival.operator.pin,
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
        is2rs: IS2RS,
        model: HydraModel,
        tasks: list[Task],
        budget: int,
        device: torch.device | str,
    ) -> None:
        """
        Args:
            is2rs: says how structures are relaxed.
            model, tasks: the potential, on ``device``.
            budget: atoms evaluated together.
            device: where rows go when their turn comes.
        """
        self.is2rs, self.model, self.tasks = is2rs, model, tasks
        self.device = device
        self.done = self.converged = self.failed = self.evaluations = 0
        self._arrived: dict[int, tuple[AtomicData, Arrival]] = {}
        self._stream = Stream((), is2rs.relaxer.course, budget)

    def relax(self, rows: Iterable[AtomicData]) -> Iterator[Relaxed]:
        """Rows (batches of one structure) as they end; pulled when there is room for them."""
        self._stream = Stream(self._arrivals(rows), self.is2rs.relaxer.course, self._stream.budget)
        for ending in self._stream:
            row, arrival = self._arrived.pop(ending.key)
            record = score(row, arrival, ending)
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

    def _arrivals(self, rows: Iterable[AtomicData]) -> Iterator[Arrival]:
        for key, row in enumerate(rows):
            row = row.to(self.device)
            arrival = self.is2rs.arrival(key, self.model, self.tasks, row)
            self._arrived[key] = row, arrival
            yield arrival
