"""Evaluation in flight asks the device once for each force evaluation, however many come and go."""

import pytest
import torch

from fairchem_gdeq.batching.bulk import Bulk
from fairchem_gdeq.evaluation.task import RelaxationTask, Relaxer
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.testing.fairchem2 import small


class Sites:
    """Springs to where the atoms are, plus a shift: two kernels, and nothing to wait for."""

    translation_invariant = rotation_equivariant = False
    calls = 0

    def __init__(self, sites, sizes):
        self.sites, self.sizes = sites, sizes

    def __call__(self, x):
        Sites.calls += 1
        return 3.0 * (self.sites - x)

    def select(self, mask):
        atoms = mask.repeat_interleave(torch.tensor(self.sizes)).nonzero().squeeze(-1)
        atoms = atoms.to(self.sites.device, non_blocking=True)
        kept = [n for n, stays in zip(self.sizes, mask.tolist(), strict=True) if stays]
        return Sites(self.sites[atoms], kept)

    def join(self, others):
        parts = [self, *others]
        sizes = [n for part in parts for n in part.sizes]
        return Sites(torch.cat([part.sites for part in parts]), sizes)

    def unfreeze(self):
        return self


def rows(count):
    return [small.batch([atoms], double=False) for atoms in small.silicon(count)]


def on(device):
    def field_of(row):
        moved = row.pos + 0.02 * torch.arange(1.0, 1.0 + len(row.pos))[:, None]
        return Sites(moved.to(device, non_blocking=True), row.natoms.tolist())

    return field_of


@pytest.mark.parametrize("budget", [16, 100])
def test_waits(device, budget):
    if device.type != "fake":
        pytest.skip("waits are counted on the pretended device only")
    from fairchem_gdeq.testing.device.counting import counted

    task = RelaxationTask(alpha=0.02, relaxer=Relaxer(horizon=3, fmax=1e-3))
    given, Sites.calls = rows(30), 0
    with counted() as counts:
        found = list(Bulk(task, on(device), budget, device).relax(given))
    assert len(found) == 30 and all(r.record.converged for r in found)
    # One more: the last positions come when everything else is over.
    assert sum(counts.waits.values()) <= Sites.calls + 1, counts.waits
    assert Sites.calls > 10


def test_records_are_those_of_the_cpu(device):
    """With a real model; rows stay on the host, and so do the relaxed positions."""
    model, tasks = small.model("esen", double=False), small.tasks()
    task = RelaxationTask(alpha=0.02, relaxer=Relaxer(horizon=2, fmax=0.5, max_steps=5))
    records = []
    for where in (device, torch.device("cpu")):
        there = model.to(where)

        def field_of(row, there=there, where=where):
            return HydraForceField.unfrozen(there, tasks, row).on(where)

        ends = sorted(Bulk(task, field_of, 20, where).relax(rows(5)), key=lambda r: r.record.row)
        assert all(r.outcome.positions.device.type == "cpu" for r in ends)
        assert all(r.row.pos.device.type == "cpu" for r in ends)
        records.append([(r.record.delta_q, r.record.residual, r.record.evaluations) for r in ends])
    for mine, other in zip(*records, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
