"""What only some structures have: an adsorbate that may come to grief, a reference that can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.calculators.calculator import Calculator

from fairchem_gdeq.audit.relaxations import End, Relaxed
from fairchem_gdeq.audit.rows import MORE, Row, not_made, paired, share
from fairchem_gdeq.evaluation.anomalies import KINDS, anomalies, has_adsorbate
from fairchem_gdeq.evaluation.metrics import ENERGY_WITHIN
from fairchem_gdeq.evaluation.reference import Answer, ask, energy_above

ADSORBATES, REFERENCE = "adsorbates", "reference"


class Asked(NamedTuple):
    """A reference at the target of a structure and where both models take its start."""

    target: Answer
    base: Answer
    tuned: Answer

    def above(self, model: int) -> float:
        """Energy above the target, eV, of the base (0) or the tuned model (1); NaN where not known."""
        value = energy_above(self[1 + model], self.target)
        return float("nan") if value is None or not np.isfinite(value) else value


def ask_all(relaxed: Sequence[Relaxed], calculator: Calculator) -> list[Asked]:
    """Ask a reference at each; whatever it raises is its answer."""

    def at(end: End) -> Answer:
        if end.failure:
            return Answer(np.inf, np.inf, end.failure)
        return ask(end.atoms, calculator, Exception)

    return [
        Asked(ask(r.pair.target, calculator, Exception), *(at(end) for end in r.ends))
        for r in relaxed
    ]


def anomaly_rows(relaxed: Sequence[Relaxed]) -> list[Row]:
    """How often an adsorbate or its surface comes to grief."""
    some = [r for r in relaxed if has_adsorbate(r.pair.start) and _sound(r)]
    if not some:
        why = "No structure has one (tag 2, beside atoms of other tags)."
        return [not_made(ADSORBATES, "anomalies", why)]
    found = [[anomalies(r.pair.start, r.ends[k].atoms) for r in some] for k in (0, 1)]
    targets = sum(bool(anomalies(r.pair.start, r.pair.target)) for r in some)
    kinds = [
        f"{kind} {sum(kind in each for each in found[0])} and "
        f"{sum(kind in each for each in found[1])}"
        for kind in KINDS
    ]
    remark = (
        f"Base and tuned: {', '.join(kinds)}. Of the targets {targets} of {len(some)} have one."
    )
    flags = [[bool(each) for each in of] for of in found]
    return [share(ADSORBATES, "anomalies", flags, remark=remark)]


def reference_rows(
    relaxed: Sequence[Relaxed], asked: Sequence[Asked] | None, why: str
) -> list[Row]:
    """Energies and forces of a reference where relaxations end.

    Args:
        relaxed: of all ranks.
        asked: the reference at each of them; None: there is none.
        why: there is none.
    """
    if not asked:
        return [not_made(REFERENCE, "energy above the target", why or "There are no structures.")]
    failures = {
        r.pair.name: answer.failure
        for r, answers in zip(relaxed, asked, strict=True)
        for answer in answers
        if answer.failure
    }
    said = [f"{name}: {failure}" for name, failure in failures.items()]
    remark = (
        f"The reference failed at {len(said)} structures: {'; '.join(said[:3])}." if said else ""
    )
    above = [np.array([each.above(k) for each in asked]) for k in (0, 1)]
    forces = [np.array([each[1 + k].force for each in asked]) for k in (0, 1)]
    rows = [paired(REFERENCE, "largest force at the end", "eV/Å", forces, remark=remark)]
    if all(answer.energy is None for each in asked for answer in each):
        return [*rows, not_made(REFERENCE, "energy above the target", "It has no energies.")]
    known = [i for i in range(len(asked)) if np.isfinite([above[0][i], above[1][i]]).all()]
    within = [[above[k][i] <= ENERGY_WITHIN for i in known] for k in (0, 1)]
    name = f"within {ENERGY_WITHIN:g} eV of the target"
    rows.append(paired(REFERENCE, "energy above the target", "eV", above))
    rows.append(share(REFERENCE, f"{name}, or below it", within, good=MORE))
    there = [i for i in known if has_adsorbate(relaxed[i].pair.start) and _sound(relaxed[i])]
    if there:
        success = [
            [
                above[k][i] <= ENERGY_WITHIN
                and not anomalies(relaxed[i].pair.start, relaxed[i].ends[k].atoms)
                for i in there
            ]
            for k in (0, 1)
        ]
        rows.append(share(ADSORBATES, f"no anomaly, and {name}", success, good=MORE))
    return rows


def _sound(relaxed: Relaxed) -> bool:
    return relaxed.base.sound and relaxed.tuned.sound
