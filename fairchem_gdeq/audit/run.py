"""An audit from its settings to its page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from fairchem_gdeq.api.potential import Potential
from fairchem_gdeq.audit import dimers, dynamics, frames, judged, strained
from fairchem_gdeq.audit.page import number, write_audit, write_numbers
from fairchem_gdeq.audit.relaxations import Relaxed, geometry_rows, relaxation_rows
from fairchem_gdeq.audit.relaxing import relax_pairs
from fairchem_gdeq.audit.rows import Row, not_made, summary
from fairchem_gdeq.audit.sample import Frame, Pair, Sample, folder_frames, folder_pairs, split_pairs
from fairchem_gdeq.audit.settings import Audit
from fairchem_gdeq.audit.sharing import attempted, spread
from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.evaluation.rows import Reference
from fairchem_gdeq.fairchem2.supported import element_limit
from fairchem_gdeq.page.write import attempt
from fairchem_gdeq.training.frame_checks import looked_at
from fairchem_gdeq.training.ranks import rank
from fairchem_gdeq.training.run_frames import Rows

T = TypeVar("T")
R = TypeVar("R")
SPLIT, GEOMETRY, SECOND = "relaxations", "geometry", "second domain"
CUTOFF = 6.0  # Angstrom, of a model that does not say


@dataclass
class Auditor:
    """Two models beside each other, and the checks that are made on them.

    Attributes:
        models: base and tuned, on one device, with the relaxer that structures are relaxed with.
        settings: what is looked at.
        reference: asked where relaxations end.
        rows: the structures of a split, with targets.
        trained: atomic numbers of the structures that were trained on.
        budget: atoms evaluated together.
    """

    models: Sequence[Potential]
    settings: Audit
    reference: Reference | None
    rows: Rows
    trained: set[int]
    budget: int

    def __post_init__(self) -> None:
        self.base, self.tuned = self.models
        self.curves: list[list[dimers.Curve]] = [[], []]
        self.runs: list[list[dynamics.Run]] = [[], []]

    def checked(self, pairs: Sample[Pair]) -> list[Row]:
        """All checks on a sample of the split; what cannot be measured is a row that says why."""
        relaxed: list[Relaxed] = []

        def ends() -> list[Row]:
            relaxed[:] = self._relaxed(pairs.items)
            rows = relaxation_rows(SPLIT, relaxed, self.base.task.basin, pairs.remark)
            return rows + geometry_rows(GEOMETRY, relaxed)

        checks: list[tuple[str, str, Callable[[], list[Row]]]] = [
            (frames.FORCES, "error", self._frames),
            (frames.ENERGIES, "drift", self._energies),
            (strained.CHECK, "force error", lambda: self._strained(pairs.items)),
            (dimers.CHECK, "curves", self._dimers),
            (dynamics.CHECK, "runs", lambda: self._dynamics(pairs.items)),
            (SPLIT, "Delta Q", ends),
            (judged.ADSORBATES, "anomalies", lambda: judged.anomaly_rows(relaxed)),
            (judged.REFERENCE, "energy above the target", lambda: self._reference(relaxed)),
            (SECOND, "Delta Q", self._second),
        ]
        return [row for check in checks for row in attempted(*check)]

    # ---- checks ------------------------------------------------------------------------------

    @cached_property
    def _labelled(self) -> Sample[Frame]:
        """Frames with forces that the models know; none where there is no folder of them."""
        if self.settings.frames is None:
            return Sample()
        found = folder_frames(self.settings.frames, self.settings.most_frames)
        strange = {frame.name: self._unknown(frame.atoms.numbers) for frame in found.items}
        known = [frame for frame in found.items if not strange[frame.name]]
        said = [f"{name}: the model does not know {new}" for name, new in strange.items() if new]
        return Sample(known, found.bad + said)

    def _frames(self) -> list[Row]:
        forces = self._forces([frame.atoms for frame in self._labelled.items])
        return frames.frame_rows(self._labelled, *forces)

    def _energies(self) -> list[Row]:
        if any(potential.energies([]) is None for potential in self.models):
            return frames.energy_rows([], None, None)
        atoms = [frame.atoms for frame in self._labelled.items]
        found = self._of_both(atoms, lambda p: lambda some: p.energies(some, self.budget) or [])
        return frames.energy_rows(self._labelled.items, *found)

    def _strained(self, pairs: Sequence[Pair]) -> list[Row]:
        calculator = self.reference
        if not isinstance(calculator, Calculator):
            return [not_made(strained.CHECK, "force error", self._no_calculator)]
        rows = []
        for factor in strained.FACTORS:
            label = partial(strained.label, factor=factor, calculator=calculator)
            found = spread(pairs, label)
            labelled = Sample(
                [each for each in found if isinstance(each, Frame)],
                [each for each in found if isinstance(each, str)],
            )
            forces = self._forces([frame.atoms for frame in labelled.items])
            rows.append(strained.strained_row(factor, labelled, *forces))
        return rows

    def _dimers(self) -> list[Row]:
        field = self.base.field(collate([self.rows[0]]))
        if not field.translation_invariant:
            why = "The model reads absolute coordinates, so two atoms alone say nothing."
            return [not_made(dimers.CHECK, "curves", why)]
        backbone = self.base.model.backbone
        graph = getattr(backbone, "molecular_graph_cfg", None)  # of EScAIP and AllScAIP
        cutoff = float(getattr(backbone, "cutoff", getattr(graph, "max_radius", CUTOFF)))
        self.curves = self._of_both(
            dimers.pairs_in(self.rows[i].atomic_numbers for i in looked_at(len(self.rows))),
            lambda p: lambda some: dimers.curves(lambda a: p.forces(a, self.budget), some, cutoff),
        )
        return dimers.dimer_rows(*self.curves)

    def _dynamics(self, pairs: Sequence[Pair]) -> list[Row]:
        nve = self.settings.nve
        numbered = list(enumerate(pairs[: nve.runs]))

        def runs_of(potential: Potential) -> Callable[[list[tuple[int, Pair]]], list[dynamics.Run]]:
            def runs(some: list[tuple[int, Pair]]) -> list[dynamics.Run]:
                calculator = potential.ase_calculator()
                bar = tqdm(some, desc=f"NVE with {potential.name}", leave=False, disable=rank() > 0)
                return [dynamics.run_nve(p.name, p.target, calculator, nve, k) for k, p in bar]

            return runs

        self.runs = self._of_both(numbered, runs_of)
        return dynamics.dynamics_rows(*self.runs)

    def _reference(self, relaxed: Sequence[Relaxed]) -> list[Row]:
        asked, calculator = None, self.reference
        if isinstance(calculator, Calculator):
            asked = spread(relaxed, lambda some: judged.ask_all(some, calculator))
        return judged.reference_rows(relaxed, asked, self._no_calculator)

    @property
    def _no_calculator(self) -> str:
        """What to say where there is none to ask."""
        if self.reference is not None:
            return "The reference is a file, which knows nothing of other structures: name a calculator."
        return "There is no reference: name a calculator with reference={_target_: ...}."

    def _second(self) -> list[Row]:
        if self.settings.second is None:
            why = "There is none: name a folder of other structures with audit.second=FOLDER."
            return [not_made(SECOND, "Delta Q", why)]
        found = folder_pairs(self.settings.second, self.settings.structures)
        met = {number for pair in found.items for number in pair.elements}
        if unknown := self._unknown(met):
            return [not_made(SECOND, "Delta Q", f"The model has no embeddings of {unknown}.")]
        remark = found.remark
        if new := met - self.trained:
            remark += (
                f" No training structure has {_symbols(new)}: the base may never have met them."
            )
        relaxed = self._relaxed(found.items)
        return relaxation_rows(SECOND, relaxed, self.base.task.basin, remark.strip())

    def _unknown(self, numbers: Iterable[int]) -> str:
        """Symbols of the elements beyond the model's embeddings; empty where there are none."""
        limit = element_limit(self.base.model)
        return "" if limit is None else _symbols({int(n) for n in numbers if n >= limit})

    # ---- over both models --------------------------------------------------------------------

    def _relaxed(self, pairs: Sequence[Pair]) -> list[Relaxed]:
        return spread(pairs, lambda some: relax_pairs(some, self.base, self.tuned, self.budget))

    def _forces(self, structures: Sequence[Atoms]) -> list[list[NDArray[np.float64]]]:
        """Both models' forces [n, 3] of each."""
        return self._of_both(structures, lambda p: lambda some: p.forces(some, self.budget))

    def _of_both(
        self,
        items: Sequence[T],
        measure: Callable[[Potential], Callable[[list[T]], Sequence[R]]],
    ) -> list[list[R]]:
        """What is measured of each item, with the base and with the tuned model."""
        return [spread(items, measure(potential)) for potential in self.models]


def audit(auditor: Auditor, split: str, folder: Path) -> list[Row]:
    """Compare base and tuned model, and write ``audit/report.html`` and ``audit.json``.

    Args:
        auditor: the two models and the settings.
        split: name of the split.
        folder: of the results.

    Returns:
        The rows of the table, on every rank.
    """
    pairs = split_pairs(auditor.rows, auditor.settings.structures)
    found = auditor.checked(pairs)
    if rank() == 0:
        verdict = summary(found)
        title = f"What tuning cost: {len(pairs.items)} structures of the split {split}"
        _print(title, found)
        print(verdict)
        into, numbers = folder / "audit", (verdict, found, auditor.curves, auditor.runs)
        print(f"results: {write_numbers(into, *numbers)}")
        attempt(lambda: write_audit(into, title, *numbers))
    return found


def _print(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("check", "quantity", "base", "tuned", "change (95%)", "of", "verdict"):
        table.add_column(heading, justify="right" if heading in ("base", "tuned", "of") else "left")
    for row in rows:
        quantity = f"{row.quantity} ({row.unit})" if row.unit else row.quantity
        change = "-" if row.change is None else f"{row.change:+.3g}"
        if row.low is not None and row.high is not None and row.sample > 1:
            change += f" ({row.low:+.3g} to {row.high:+.3g})"
        numbers = (number(row.base), number(row.tuned), change, str(row.sample or "-"))
        table.add_row(row.check, quantity, *numbers, row.verdict)
    console = Console(width=max(140, Console().width))
    console.print(table)
    for row in rows:
        if row.remark:
            console.print(
                f"{row.check}, {row.quantity}: {row.remark}", highlight=False, markup=False
            )


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
