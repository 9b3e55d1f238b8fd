"""Batches of several processes."""

from __future__ import annotations

import pytest

from fairchem_gdeq.fairchem2.loaders import EvaluationBatches, TrainingBatches


class Rows:
    """A data set of structures of 8 atoms."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def get_metadata(self, name, rows):
        assert name == "natoms"
        return [8] * len(rows)


def of_ranks(kind, count, ranks, max_atoms):
    return [
        list(kind(Rows(count), max_atoms, ranks, rank, seed=0, shuffle=kind is TrainingBatches))
        for rank in range(ranks)
    ]


def test_fewer_batches_than_processes_are_split_into_structures():
    shares = of_ranks(EvaluationBatches, count=3, ranks=2, max_atoms=64)
    assert all(len(batch) == 1 for share in shares for batch in share)
    assert {row for share in shares for batch in share for row in batch} == {0, 1, 2}


def test_enough_batches_stay_as_they_are():
    shares = of_ranks(EvaluationBatches, count=6, ranks=2, max_atoms=24)
    assert [len(batch) for share in shares for batch in share] == [3, 3]


def test_training_without_a_batch_for_each_process_is_refused():
    with pytest.raises(
        ValueError, match=r"3 training structures make 1 batches of max_atoms=64, and 2"
    ):
        of_ranks(TrainingBatches, count=3, ranks=2, max_atoms=64)
    assert len(of_ranks(TrainingBatches, count=3, ranks=2, max_atoms=8)) == 2


def test_fewer_structures_than_processes_are_refused():
    with pytest.raises(ValueError, match="1 structures to evaluate are fewer than the 2 processes"):
        of_ranks(EvaluationBatches, count=1, ranks=2, max_atoms=64)
