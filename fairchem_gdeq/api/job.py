"""Structures relaxed in flight, each of which ends with a code whatever becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from ase import Atoms
from fairchem.core.datasets.atomic_data import AtomicData
from numpy.typing import NDArray
from tqdm import tqdm

from fairchem_gdeq.api.structures import require_usable
from fairchem_gdeq.batching.bulk import Bulk, Observe, Relaxed
from fairchem_gdeq.relax import Cause, ForceField


class Code(Enum):
    """How the relaxation of a structure ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"  # as far as max_steps displacements go
    DIVERGED = "diverged"  # forces or positions left all bounds: at the last sound positions
    OUT_OF_MEMORY = "out_of_memory"  # does not fit alone: as far as it came
    BAD_INPUT = "bad_input"  # never relaxed
    FAILED = "failed"  # the potential raised an error for it alone: never relaxed


@dataclass(frozen=True)
class End:
    """What became of one structure.

    Attributes:
        code: how its relaxation ended.
        reason: what is wrong with one of ``BAD_INPUT`` or ``FAILED``, and why another has not converged,
            such as ``oscillates`` or ``exploded``; empty for one that has.
        positions: [n, 3] Angstrom; None: it was not relaxed.
        evaluations: force evaluations.
        residual: largest force on a free atom, eV/Angstrom.
        delta_q: from its target, or where it has none from its start, amu^0.5 Angstrom.
    """

    code: Code
    reason: str = ""
    positions: NDArray[np.float64] | None = None
    evaluations: int = 0
    residual: float = float("nan")
    delta_q: float = float("nan")


class Job:
    """Structures to relax with a potential."""

    def __init__(
        self,
        given: Sequence[Atoms],
        potential: Any,
        task: Any,
        budget: int,
        targets: Sequence[Atoms | None] | None = None,
        observe: Observe | None = None,
    ) -> None:
        """
        Args:
            given: the starts.
            potential: a ``Potential``, or what ``relax`` reads of one.
            task: says how they are relaxed.
            budget: atoms evaluated together.
            targets: to measure ends by.
            observe: told of every force evaluation; a row's ``row`` is the index of its structure. A
                structure that is relaxed again, alone, begins anew with evaluation 0.
        """
        self.given, self.potential, self.task, self.budget = given, potential, task, budget
        self.targets = [None] * len(given) if targets is None else targets
        self.observe = observe
        self._fields: dict[int, ForceField] = {}
        self._unusable: list[tuple[int, End]] = []

    def run(self, bar: tqdm) -> Iterator[tuple[int, End]]:
        """Indices and ends as they come: all together; if that raises an error, the rest one by one.

        An error in the evaluation of a pack does not say which structure it is of.
        """
        left = dict.fromkeys(range(len(self.given)))
        try:
            for index, end in self._run(list(left), bar):
                del left[index]
                yield index, end
        except Exception as error:
            for index, end in self._unusable:
                del left[index]
                yield index, end
            logging.warning(f"{type(error).__name__}: {error}. {len(left)} go on one by one")
        else:
            return
        for index in left:
            try:
                yield from self._run([index], bar)
            except Exception as error:
                reason = f"structure {index}: {type(error).__name__}: {error}"
                yield index, End(Code.FAILED, reason)
                bar.update()

    def _run(self, indices: Iterable[int], bar: tqdm) -> Iterator[tuple[int, End]]:
        self._unusable = []
        bulk = Bulk(
            self.task,
            lambda row: self._fields.pop(int(row.row)),
            self.budget,
            self.potential.device,
            self.observe,
        )
        for relaxed in bulk.relax(self._rows(indices, bar)):
            bulk.show(bar)
            yield int(relaxed.row.row), _end_of(relaxed)
        yield from self._unusable

    def _rows(self, indices: Iterable[int], bar: tqdm) -> Iterator[AtomicData]:
        """Those that can be relaxed; the others are noted."""
        for index in indices:
            try:
                require_usable(self.given[index], index)
                row = self.potential.row(self.given[index], index, self.targets[index])
                self._fields[index] = self.potential.field(row)
            except ValueError as error:
                text = str(error)
                reason = text if text.startswith("structure") else f"structure {index}: {text}"
                self._unusable.append((index, End(Code.BAD_INPUT, reason)))
                bar.update()
            else:
                yield row


def _end_of(relaxed: Relaxed) -> End:
    outcome, record = relaxed.outcome, relaxed.record
    code = Code.MAX_STEPS
    if not outcome.fitted:
        code = Code.OUT_OF_MEMORY
    elif record.diverged:
        code = Code.DIVERGED
    elif record.converged:
        code = Code.CONVERGED
    # A copy: the outcome's tensor may be a part of the whole pack's.
    positions = np.array(outcome.positions.to(torch.float64))
    cause = Cause.of(record.cause)
    reason = "" if cause is Cause.NONE else cause.words
    return End(code, reason, positions, outcome.evaluations, outcome.residual, record.delta_q)
