"""Which structures of a split are worth looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import NOTICEABLE, pairs_of
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.scoring import BASE, TUNED

ALL = 12  # structures that are looked at


def choose(records: Mapping[str, Sequence[Record]], basin: Basin) -> dict[int, str]:
    """Rows of at most ``ALL`` structures, each with what it is chosen for, in the order of these kinds.

    With a tuned model they are ``gained`` and ``lost`` (right basins), ``nearer`` and ``farther`` (than
    with the base, by the change of log(1 + Delta Q)), ``best`` and ``worst`` (by where it ends). The
    kinds choose in turn, each the most pronounced structure that is left. With a base alone there are
    the last two.

    Args:
        records: of the rows of the table, by title; the base's among them.
        basin: when a structure is in the right one.
    """
    found = pairs_of(records[BASE], records.get(TUNED, records[BASE]), basin)
    change = np.log1p(found.after) - np.log1p(found.before)
    moved = np.abs(found.after - found.before) > NOTICEABLE
    everywhere = np.ones_like(moved)
    kinds = {
        "gained": _ordered(change, found.gained),
        "lost": _ordered(-change, found.lost),
        "nearer": _ordered(change, moved & (change < 0)),
        "farther": _ordered(-change, moved & (change > 0)),
        "best": _ordered(found.after, everywhere),
        "worst": _ordered(-found.after, everywhere),
    }
    chosen: dict[int, str] = {}
    for _ in range(ALL):
        for kind, places in kinds.items():
            left = [row for row in found.rows[places].tolist() if row not in chosen]
            if left and len(chosen) < ALL:
                chosen[left[0]] = kind
    return {row: kind for each in kinds for row, kind in chosen.items() if kind == each}


def _ordered(by: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places of ``among``, by the values there."""
    (places,) = np.nonzero(among)
    return places[np.argsort(by[places], kind="stable")]
