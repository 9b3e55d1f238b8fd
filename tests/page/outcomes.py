"""What a page shows, made up: a short run on silicon cells, of which one has a name that is a program."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.choice import choose
from fairchem_gdeq.evaluation.comparison import compare
from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.evaluation.overlays import Overlay
from fairchem_gdeq.evaluation.records import Label, Record
from fairchem_gdeq.evaluation.scoring import BASE, TUNED, UNRELAXED
from fairchem_gdeq.page.outcome import Outcome
from fairchem_gdeq.training.history import History
from tests.records import RECORD

EVIL = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def history(folder: Path, epochs: int = 1, each: int = 8) -> History:
    """A run with forces, whose every second step has no equilibrium."""
    made = History("last")
    made.open(folder, 0)
    scores = {"delta_q_mean": 4.0, "basins": 0.5, "converged": 1.0, "evaluations": 30.0}
    made.set_base(scores, [replace(RECORD, row=row, delta_q=4.0) for row in range(8)])
    for step in range(epochs * each):
        log = {"train/step": step, "train/epoch": step / each, "train/loss": 1 / (1 + step)}
        log |= {"train/seconds": 2.0, "train/peak_memory_mb": 900.0, "train/forces_loss": 0.1}
        log |= {"train/delta_q_relaxed": 3.0 if step % 2 else float("nan")}
        made.add_step(log)
    for epoch in range(1, epochs + 1):
        records = [replace(RECORD, row=row, delta_q=3.9 - 0.1 * row) for row in range(8)]
        made.add_epoch(epoch, scores | {"delta_q_mean": 3.5}, records, Basin())
    return made


def records(distances: Mapping[str, list[float]], names: list[str]) -> dict[str, list[Record]]:
    """Of rows of the table, from the Delta Q of each structure."""
    return {
        title: [
            replace(RECORD, sid=sid, row=row, delta_q=distance)
            for row, (sid, distance) in enumerate(zip(names, found, strict=True))
        ]
        for title, found in distances.items()
    }


def cell_of(row: int, name: str) -> Overlay:
    """Eight atoms, of which the row says how far the first one is off."""
    atoms = bulk("Si", cubic=True)
    atoms.symbols[1] = "Ge"
    off = np.zeros_like(atoms.positions)
    off[0, 2] = 1.0
    x = atoms.positions
    places = {UNRELAXED: x + off, BASE: x + 0.6 * off, TUNED: x + 0.1 * row * off}
    free = np.ones(8, dtype=bool)
    return Overlay(Label(name, row), atoms.numbers, atoms.cell.array, free, x, places)


def outcome(folder: Path, **changed: Any) -> Outcome:
    """One whole outcome, with parts changed."""
    names = [EVIL, *"abcdefg"]
    found = records(
        {
            UNRELAXED: [9.0] * 8,
            BASE: [4.0, 1.0, 1.5, 6.0, 7.0, 3.0, 0.5, 2.5],
            TUNED: [1.0, 1.0, 3.5, 5.0, 9.0, 0.2, 0.4, 2.6],
        },
        names,
    )
    scores = {title: summarise(each, Basin()) for title, each in found.items()}
    for title, error in ((BASE, 0.03), (TUNED, 0.02)):
        scores[title]["force_mae"] = error
    comparison = compare(found[BASE], found[TUNED], Basin())
    why = choose(found, Basin())
    overlays = [cell_of(row, names[row]) for row in why]
    made = Outcome(
        "test", "gdeq", Basin(), scores, found, history(folder), comparison, overlays, why
    )
    return replace(made, **changed)
