"""In-flight batching: any number of structures relaxed in packs of bounded size.

A structure that has ended leaves the pack and the next ones enter, so that every force evaluation is
as full as memory allows. A structure's path is its own, whatever its companions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.causes import Cause
from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.packs import Ended, Evaluation, Pack
from fairchem_gdeq.relax.settings import Relaxer

# What torch says on a GPU and, in two wordings, on a CPU.
MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Outcome:
    """How one structure ended; errors are values here, as in ``Solution``.

    Attributes:
        key: what its request was called.
        positions: [n, 3] X*, Angstrom, on the host; the best finite ones if it diverged. From another
            device they are there when the host has next waited for it.
        converged: max|F_free| < fmax, and it did not diverge on the way.
        cause: why it did not converge.
        steps: displacements by the solver.
        evaluations: force evaluations.
        residual: max|F_free| at ``positions``, eV/Angstrom; infinite where never known.
    """

    key: int
    positions: Tensor
    converged: bool
    cause: Cause
    steps: int
    evaluations: int
    residual: float

    @property
    def diverged(self) -> bool:
        """Whether it is nowhere."""
        return self.cause >= Cause.COLLAPSED

    @property
    def fitted(self) -> bool:
        """False if memory did not suffice for this structure alone: it is not relaxed."""
        return self.cause != Cause.OUT_OF_MEMORY


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

    def __init__(
        self,
        requests: Iterable[Request],
        relaxer: Relaxer,
        budget: int,
        observe: Callable[[Pack, Evaluation], None] | None = None,
    ) -> None:
        """
        Args:
            requests: pulled one at a time, when there is room.
            relaxer: how each is relaxed.
            budget: atoms evaluated together; a larger structure is evaluated alone.
            observe: called with the pack and its forces after each evaluation, for trajectories.

        Raises:
            ValueError: a budget below one atom.
        """
        if budget < 1:
            raise ValueError(f"budget of {budget} atoms: expected at least 1")
        self.relaxer, self.budget, self.observe = relaxer, budget, observe
        self._requests = iter(requests)
        self._waiting: deque[Pack] = deque()  # each of one structure
        self._pack: Pack | None = None

    @property
    def in_flight(self) -> int:
        """Structures in the pack now."""
        return 0 if self._pack is None else len(self._pack.keys)

    def __iter__(self) -> Iterator[Outcome]:
        """Outcomes as they come; an error of a request or a field is raised as it is.

        From another device their positions come with the answer of the next evaluation, for which
        the host waits anyway.
        """
        underway: list[Outcome] = []
        while (pack := self._fill()) is not None:
            found = self._evaluate(pack)
            if found is not None:
                if self.observe is not None:
                    self.observe(pack, found)
                with torch.no_grad():
                    ended, self._pack = pack.advance(found, self.relaxer)
                yield from underway
                underway, outcomes = [], _outcomes(ended)
            elif len(pack.keys) == 1:
                outcomes, self._pack = [_unfitted(pack)], None
            else:
                outcomes, self._pack = [], self._part(pack)
            if pack.positions.device.type == "cpu":
                yield from outcomes
            else:
                underway += outcomes
            latest = pack.positions
        if underway:
            latest[:1].cpu()  # waits
        yield from underway

    def _fill(self) -> Pack | None:
        """The pack with as many newcomers as fit; None when all is done."""
        parts = [] if self._pack is None else [self._pack]
        room = self.budget - sum(sum(part.sizes) for part in parts)
        while room > 0 and (newcomer := self._next()) is not None:
            size = sum(newcomer.sizes)
            if size > room and parts:
                self._waiting.appendleft(newcomer)
                break
            parts.append(newcomer)
            room -= size
        self._pack = parts[0].join(parts[1:]) if parts else None
        return self._pack

    def _next(self) -> Pack | None:
        """The next structure to enter: those that were taken out before those that never were in it."""
        if self._waiting:
            return self._waiting.popleft()
        for request in self._requests:
            return Pack.begin([request.key], request.operator, request.start, self.relaxer)
        return None

    def _evaluate(self, pack: Pack) -> Evaluation | None:
        """Forces of the pack, or None if memory ran out."""
        try:
            with torch.no_grad():
                return pack.evaluate()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Only here are the tensors free that the error's traceback held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _part(self, pack: Pack) -> Pack:
        """What stays when the pack does not fit: half of it, at least one structure."""
        sizes = torch.tensor(pack.sizes)
        self.budget = max(int(sizes.sum()) // 2, 1)
        stays = sizes.cumsum(0) <= self.budget
        stays[0] = True
        logging.warning(
            f"out of memory with {int(sizes.sum())} atoms in {len(pack.keys)} structures: "
            f"from here on at most {self.budget} atoms together"
        )
        one = torch.eye(len(stays), dtype=torch.bool)
        parked = [pack.select(one[i]) for i in (~stays).nonzero().flatten().tolist()]
        self._waiting.extendleft(reversed(parked))
        return pack.select(stays)


def _outcomes(ended: Ended | None) -> list[Outcome]:
    """Of each structure that left a pack by itself."""
    if ended is None:
        return []
    columns = (
        ended.converged.tolist(),
        ended.cause.tolist(),
        ended.steps.tolist(),
        ended.evaluations.tolist(),
        ended.residual.tolist(),
    )
    return [
        Outcome(
            key=key,
            positions=positions.to("cpu", non_blocking=True),
            converged=converged,
            cause=Cause(cause),
            steps=steps,
            evaluations=evaluations,
            residual=residual,
        )
        for key, positions, converged, cause, steps, evaluations, residual in zip(
            ended.keys, ended.positions.split(ended.sizes), *columns, strict=True
        )
    ]


def _unfitted(pack: Pack) -> Outcome:
    """The one structure of a pack for which memory does not suffice, as far as it came."""
    place = pack.before if int(pack.steps) else pack.origin
    return Outcome(
        key=pack.keys[0],
        positions=place.to("cpu", non_blocking=True),
        converged=False,
        cause=Cause.OUT_OF_MEMORY,
        steps=int(pack.steps),
        evaluations=int(pack.evaluations),
        residual=float(pack.residual),
    )
