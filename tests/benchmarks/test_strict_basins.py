"""A prediction counts by where the reference takes it, not by where it lies."""

from functools import partial

import numpy as np
import pytest
from ase.build import bulk
from ase.db import connect

from benchmarks import strict_basins
from tests.data.springs import Springs

CELL = bulk("Si", cubic=True)


def moved(far, seed):
    """One atom moved by so much; then all shifted as one."""
    atoms = CELL.copy()
    rng = np.random.default_rng(seed)
    atoms.positions[seed % 8] += far * np.array([0.0, 0.6, 0.8])
    atoms.positions += rng.normal(size=3)
    return atoms


def test_the_reference_decides(tmp_path):
    """It takes all to the perfect crystal: to the target of the first two, not to that of the third."""
    with connect(tmp_path / "data.aselmdb", type="aselmdb") as database:
        for i, target in enumerate([CELL, CELL, moved(0.9, 3)]):
            database.write(CELL, data={"sid": f"s{i}", "pos_relaxed": target.positions})
    targets = strict_basins.targets_of([tmp_path])
    predictions = {"s0": moved(0.05, 0), "s1": moved(0.8, 1), "s2": moved(0.9, 3)}
    reference = partial(Springs, CELL.positions)
    found = strict_basins.compare(
        predictions, targets, tmp_path / "reference", 0.1, 1, reference=reference
    )
    assert [(j.converged, j.strictly, j.by_delta_q) for j in found] == [
        (True, True, True),
        (True, True, False),
        (True, False, True),
    ]
    with pytest.raises(SystemExit, match="1 predictions have no target, such as other"):
        strict_basins.compare({"other": CELL}, targets, tmp_path, 0.1, 1, reference=reference)
    with pytest.raises(SystemExit, match=r"s0\.npz is a relaxation of another prediction of s0"):
        strict_basins.compare(
            {"s0": moved(0.05, 1)}, targets, tmp_path / "reference", 0.1, 1, reference=reference
        )


def test_a_row_is_compared_with_the_first_by_pairs():
    """Of three: one gained, one lost, one right in both."""
    judged = strict_basins.Judged
    first = [
        judged("a", True, False, True),
        judged("b", True, True, True),
        judged("c", True, True, False),
    ]
    then = [
        judged("a", True, True, True),
        judged("b", True, False, False),
        judged("c", True, True, True),
    ]
    assert strict_basins.row("base", first, None) == (
        "| base | 2 of 3 (66.7%) | 2 of 3 (66.7%) | 1 | 1 |  |  |"
    )
    assert strict_basins.row("tuned", then, first) == (
        "| tuned | 2 of 3 (66.7%) | 2 of 3 (66.7%) | 0 | 0 | 1 : 1 | +0.000 (-1.000 to +1.000) |"
    )
    with pytest.raises(SystemExit, match="tuned is of other structures than the first"):
        strict_basins.row("tuned", then[:2], first)
