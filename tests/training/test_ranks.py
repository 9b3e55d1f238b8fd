"""Two processes against one that has all their structures: the same gradient, to the last digits."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from fairchem_gdeq.relax import GMRES, Operator, make_signal
from fairchem_gdeq.testing.fields import SiteField, structures
from fairchem_gdeq.training.gradients import average_over_ranks
from fairchem_gdeq.training.ranks import share_cores

SIZES = [3, 4, 2, 5, 3]
METHOD = {
    "horizon": 3,
    "fmax": 1e-8,
    "max_steps": 2000,
    "adjoint": GMRES(tol=1e-10, max_vjps=200, damping=0.0),
}
# Structures of each rank, and those that diverge.
CASES = {
    "equal": ([[0, 1], [2, 3]], []),
    "unequal": ([[0], [1, 2, 3, 4]], []),
    "one of many diverges": ([[0, 3], [1, 2, 4]], [2]),
    "all of a rank diverge": ([[0, 3], [1, 2, 4]], [1, 2, 4]),
}


def gradients(case: str, rank: int | None) -> tuple[list[torch.Tensor | None], int]:
    """Of a rank's structures, averaged over the ranks, or of all in one batch (None).

    Field's parameters, alpha and one that nothing depends on; and how many structures diverged.
    """
    shares, diverging = CASES[case]
    chosen = [*shares[0], *shares[1]] if rank is None else shares[rank]
    generator = torch.Generator().manual_seed(0)
    x, sites, move = torch.randn(3, sum(SIZES), 3, generator=generator)
    s = structures(SIZES)
    field = SiteField(sites, s.batch, curl=0.0)
    field.w2.data = -0.2 * field.w1.data.T  # conservative: every solve converges
    alpha, unused = torch.tensor(0.1, requires_grad=True), torch.ones(2, requires_grad=True)
    x[torch.isin(s.batch, torch.tensor(diverging, dtype=torch.long))] *= 1e6
    operator = Operator.build(field, s, alpha)
    mask = torch.isin(torch.arange(len(SIZES)), torch.tensor(chosen))
    atoms = s.atoms_of(mask)
    mine = (operator.select(mask), x[atoms], (x + 0.3 * move)[atoms])
    report = make_signal("gdeq", **METHOD)(*mine)
    parameters = [*field.parameters(), alpha, unused]
    if rank == 1 and case == "all of a rank diverge":
        assert all(p.grad is None for p in parameters)
    reached = average_over_ranks(parameters, len(chosen))
    assert len(reached) == len(parameters) - 1 and unused.grad is None
    return [p.grad for p in parameters[:-1]], int(report.diverged.sum())


def work(rank: int, folder: Path) -> None:
    """One of two processes: every case, saved for the test to compare."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, world_size=2, rank=rank)
    torch.save({case: gradients(case, rank) for case in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_gradient_of_one_process(found, case):
    torch.set_default_dtype(torch.float64)
    expected, diverged = gradients(case, None)
    assert diverged == len(CASES[case][1]) == sum(rank[case][1] for rank in found)
    for rank in found:
        for mine, theirs in zip(rank[case][0], expected, strict=True):
            assert theirs.abs().max() > 1e-4
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "12"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "5"}, None),
        ({}, None),
    ],
)
def test_processes_of_one_machine_share_its_cores(monkeypatch, environment, threads):
    for key in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    share_cores()
    assert asked == ([] if threads is None else [threads])
