"""Scores of potentials on structures whose relaxed positions are known."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ase import Atoms
from fairchem.core.datasets.atomic_data import AtomicData
from rich.console import Console

from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.api.structures import as_list, require_pairs
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.rows import unrelaxed_row
from fairchem_gdeq.evaluation.scoring import UNRELAXED, EvaluatedModel, Scoring, Split
from fairchem_gdeq.evaluation.table import print_table
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.training.history import History


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How good the ends of relaxations are, for the unrelaxed starts and each potential.

    Attributes:
        scores: by row of the table; the keys of a row are those of ``metrics.summarise``, such as
            ``delta_q_mean`` (amu^0.5 Angstrom).
        records: every structure's, by row of the table, in the order in which they were given.
        table: the scores as text.
    """

    scores: dict[str, dict[str, float]]
    records: dict[str, list[Record]]
    table: str

    def __str__(self) -> str:
        return self.table

    def __repr__(self) -> str:
        said = ", ".join(f"{k} {v['delta_q_mean']:.3f}" for k, v in self.scores.items())
        return f"Evaluation(mean Delta Q: {said})"


def evaluate(
    potentials: Potential | Mapping[str, Potential],
    starts: Atoms | Iterable[Atoms],
    targets: Atoms | Iterable[Atoms],
    *,
    name: str = "test",
    max_atoms: int | None = None,
    show: bool = True,
) -> Evaluation:
    """Relax the starts with each potential and measure how far from the targets they end.

    Args:
        potentials: one, or several by the names that they have in the table.
        starts: what is relaxed, as each potential's ``task`` says.
        targets: the relaxed structures, wrapped into the cell in any way.
        name: of the structures, in the table.
        max_atoms: atoms evaluated together.
        show: print the table.

    Raises:
        BadRows: lists the structures that cannot be used.
        ValueError: other numbers of starts and targets, or none.
    """
    given, wanted = as_list(starts), as_list(targets)
    require_pairs(name, given, wanted)
    named = {potentials.name: potentials} if isinstance(potentials, Potential) else dict(potentials)
    records: dict[str, list[Record]] = {}
    task = IS2RS()
    for title, potential in named.items():
        scoring, chosen = scoring_of(potential, given, wanted, name, max_atoms)
        task = potential.task
        if UNRELAXED not in records:
            row = unrelaxed_row(task)
            records[UNRELAXED] = _in_order(scoring.scored(row, chosen, UNRELAXED))
        records[title] = _in_order(scoring.relaxed(chosen))
    scores = {title: summarise(found, task.basin) for title, found in records.items()}
    text = io.StringIO()
    # In a notebook rich would show it by itself, and nothing would be left for ``table``.
    console = Console(file=text, width=120, force_jupyter=False, force_terminal=False)
    print_table(name, scores, History(), task.basin, console=console)
    table = text.getvalue()
    if show:
        print(table)
    return Evaluation(scores, records, table)


def scoring_of(
    potential: Potential,
    starts: list[Atoms],
    targets: list[Atoms],
    name: str,
    max_atoms: int | None = None,
) -> tuple[Scoring, EvaluatedModel]:
    """What the trainers score a split with, for structures that have been checked."""

    def rows() -> Iterator[AtomicData]:
        for index, (start, target) in enumerate(zip(starts, targets, strict=True)):
            yield potential.row(start, index, target)

    budget = max_atoms or potential.atoms_together
    split = Split(name, rows, len(starts), budget, potential.device)
    scoring = Scoring(
        split, lambda model, batch: potential.field(batch), lambda model: potential.tasks
    )
    return scoring, EvaluatedModel(potential.name, potential.model, potential.task)


def _in_order(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.row)
