"""Data sets in equal parts, of which one is held out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairchem_gdeq.data.folds import Fold

NAMES = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40)


@given(names=NAMES, of=st.integers(2, 6), seed=st.integers(0, 3))
def test_every_row_is_held_out_once_with_all_rows_of_its_name(names, of, seed):
    if len(set(names)) < of:
        with pytest.raises(ValueError, match=f"cannot be put into {of} folds"):
            Fold(of, 0, held=True, seed=seed).choose(names)
        return
    parts = [Fold(of, k, held=True, seed=seed).choose(names) for k in range(of)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(names)))
    sizes = [len({names[i] for i in part}) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == len(set(names))  # no name in two parts
    for k, part in enumerate(parts):
        others = Fold(of, k, held=False, seed=seed).choose(names)
        assert sorted(part + others) == list(range(len(names)))


def test_names_are_not_dealt_out_in_their_order():
    """Which is often one of kinds."""
    names = [f"row{i:02d}" for i in range(20)]
    assert Fold(4, 0, held=True).choose(names) != list(range(0, 20, 4))


@pytest.mark.parametrize(("of", "number"), [(1, 0), (0, 0), (3, 3), (3, -1)])
def test_a_fold_that_is_none(of, number):
    with pytest.raises(ValueError, match=f"fold {number} of {of}: expected at least 2 folds"):
        Fold(of, number, held=True)
