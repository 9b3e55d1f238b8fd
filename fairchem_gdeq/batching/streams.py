"""In-flight batching: any number of structures relaxed in packs of bounded size.

A structure that has ended leaves the pack and the next ones enter, so that every force evaluation is
as full as memory allows. A structure's path is its own, whatever its companions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.flight import Course, Flight, Outcome
from fairchem_gdeq.relax.operator import Operator

# What torch says on a GPU and, in two wordings, on a CPU.
MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Request:
    """One structure to relax.

    Attributes:
        key: how its outcome is told from the others'; any number, used once.
        operator: G on this structure alone; all requests share field, alpha and cap. Its field
            should be unfrozen: it is evaluated far from the start.
        start: [n, 3] X_0, Angstrom.
    """

    key: int
    operator: Operator
    start: Tensor


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in MEMORY)


class Stream:
    """Relaxes requests; iterate over it for their outcomes, in the order in which they end.

    Where a force evaluation runs out of memory, the budget becomes half of the pack that did not
    fit, and the latest structures wait with all they have done so far. A structure that does not
    fit alone ends with ``fitted`` False.
    """

    def __init__(self, requests: Iterable[Request], course: Course, budget: int) -> None:
        """
        Args:
            requests: pulled one at a time, when there is room.
            course: how each is relaxed.
            budget: atoms evaluated together; a larger structure is evaluated alone.

        Raises:
            ValueError: a budget below one atom.
        """
        if budget < 1:
            raise ValueError(f"budget of {budget} atoms: expected at least 1")
        self.course, self.budget = course, budget
        self._requests = iter(requests)
        self._waiting: deque[Flight] = deque()  # each of one structure
        self._flight: Flight | None = None

    @property
    def in_flight(self) -> int:
        """Structures in the pack now."""
        return 0 if self._flight is None else len(self._flight.keys)

    def __iter__(self) -> Iterator[Outcome]:
        """Outcomes as they come; an error of a request or a field is raised as it is.

        From another device their positions come with the answer of the next evaluation, for which
        the host waits anyway.
        """
        underway: list[Outcome] = []
        while (flight := self._fill()) is not None:
            forces = self._evaluate(flight)
            if forces is not None:
                with torch.no_grad():
                    outcomes, self._flight = flight.advance(forces, self.course)
                yield from underway
                underway = []
            elif len(flight.keys) == 1:
                outcomes, self._flight = flight.unfitted(), None
            else:
                outcomes, self._flight = [], self._part(flight)
            if flight.positions.device.type == "cpu":
                yield from outcomes
            else:
                underway += outcomes
            latest = flight.positions
        if underway:
            latest[:1].cpu()  # waits
        yield from underway

    def _fill(self) -> Flight | None:
        """The pack with as many newcomers as fit; None when all is done."""
        parts = [] if self._flight is None else [self._flight]
        room = self.budget - sum(sum(part.sizes) for part in parts)
        while room > 0 and (newcomer := self._next()) is not None:
            size = sum(newcomer.sizes)
            if size > room and parts:
                self._waiting.appendleft(newcomer)
                break
            parts.append(newcomer)
            room -= size
        self._flight = parts[0].join(parts[1:]) if parts else None
        return self._flight

    def _next(self) -> Flight | None:
        """The next structure to enter: those that were taken out before those that never flew."""
        if self._waiting:
            return self._waiting.popleft()
        for request in self._requests:
            return Flight.begin(request.key, request.operator, request.start, self.course)
        return None

    def _evaluate(self, flight: Flight) -> Tensor | None:
        """Forces [n, 3] of the pack, or None if memory ran out."""
        try:
            with torch.no_grad():
                return flight.operator.forces(flight.positions)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Only here are the tensors free that the error's traceback held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _part(self, flight: Flight) -> Flight:
        """What stays when the pack does not fit: half of it, at least one structure."""
        sizes = torch.tensor(flight.sizes)
        self.budget = max(int(sizes.sum()) // 2, 1)
        stays = sizes.cumsum(0) <= self.budget
        stays[0] = True
        logging.warning(
            f"out of memory with {int(sizes.sum())} atoms in {len(flight.keys)} structures: "
            f"from here on at most {self.budget} atoms together"
        )
        one = torch.eye(len(stays), dtype=torch.bool)
        parked = [flight.select(one[i]) for i in (~stays).nonzero().flatten().tolist()]
        self._waiting.extendleft(reversed(parked))
        return flight.select(stays)
