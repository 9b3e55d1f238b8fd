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
    """Of four: one gained, one lost, one right and one wrong in both."""
    judged = strict_basins.Judged
    first = [
        judged("a", True, False, 1.0),
        judged("b", True, True, 1.0),
        judged("c", True, True, 3.0),
    ]
    first.append(judged("d", True, False, 9.0))
    then = [
        judged("c", True, True, 1.0),
        judged("a", True, True, 1.0),
        judged("b", True, False, 3.0),
    ]
    then.append(judged("d", False, False, 9.0))
    assert strict_basins.row("base", first, None) == (
        "| base | 2 of 4 (50.0%) | 2 of 4 (50.0%) | 1 | 1 |  |  |"
    )
    assert strict_basins.row("tuned", then, first) == (
        "| tuned | 2 of 4 (50.0%) | 2 of 4 (50.0%) | 0 | 0 | 1 : 1 | +0.000 (-0.750 to +0.750) |"
    )
    assert list(strict_basins.groups("tuned", then, first)) == [
        "| tuned, before and after | 1 | 3.00, 1.00 | 3.00, 1.00 | -0.693 (-inf to +inf) | -0.173 |",
        "| tuned, neither | 1 | 9.00, 9.00 | 9.00, 9.00 | +0.000 (-inf to +inf) | +0.000 |",
        "| tuned, only after | 1 | 1.00, 1.00 | 1.00, 1.00 | +0.000 (-inf to +inf) | +0.000 |",
        "| tuned, only before | 1 | 1.00, 3.00 | 1.00, 3.00 | +0.693 (-inf to +inf) | +0.173 |",
    ]
    assert len(list(strict_basins.groups("base", first, first))) == 2
    with pytest.raises(SystemExit, match="tuned is of other structures than the first"):
        strict_basins.row("tuned", then[:2], first)
