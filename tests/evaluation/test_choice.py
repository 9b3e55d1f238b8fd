"""Which structures are looked at."""

from dataclasses import replace

import pytest

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.choice import ALL, choose
from fairchem_gdeq.evaluation.scoring import BASE, TUNED
from tests.records import RECORD


def records(distances, **parts):
    return [replace(RECORD, row=row, delta_q=d, **parts) for row, d in enumerate(distances)]


def test_each_kind_has_its_most_pronounced_structure():
    base = [5.0, 9.0, 1.0, 0.5, 7.0, 3.0, 4.0, 0.1, 20.0]
    tuned = [1.9, 0.5, 2.1, 8.0, 2.5, 6.0, 4.0, 0.1, 20.0]
    chosen = choose({BASE: records(base), TUNED: records(tuned)}, Basin())
    assert list(chosen.items()) == [
        *((1, "gained"), (0, "gained")),
        *((3, "lost"), (2, "lost")),
        *((4, "nearer"), (5, "farther")),
        *((7, "best"), (6, "best")),  # the one that is left, last
        (8, "worst"),
    ]


def test_a_base_alone_has_its_best_and_worst():
    chosen = choose({BASE: records(range(40))}, Basin())
    assert chosen == dict.fromkeys(range(6), "best") | {39 - row: "worst" for row in range(6)}


def test_there_are_never_too_many():
    base = {BASE: records([4.0] * 50)}
    chosen = choose(base | {TUNED: records([1.0] * 25 + [9.0] * 25)}, Basin())
    assert len(chosen) == ALL and set(chosen.values()) == {
        "gained",
        "nearer",
        "farther",
        "best",
        "worst",
    }


def test_a_diverged_structure_is_not_gained():
    after = records([0.1] * 3, diverged=True)
    chosen = choose({BASE: records([4.0] * 3), TUNED: after}, Basin())
    assert "gained" not in chosen.values()


@pytest.mark.parametrize("moved", [0.019, -0.019])
def test_what_hardly_moved_is_neither_nearer_nor_farther(moved):
    chosen = choose({BASE: records([4.0] * 5), TUNED: records([4.0 + moved] * 5)}, Basin())
    assert set(chosen.values()) == {"best", "worst"}
