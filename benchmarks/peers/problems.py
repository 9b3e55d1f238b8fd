"""The two problems on which peers are compared, each as the configs relax it (fairchem 2)."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

from fairchem_gdeq.api.potential import Potential, load_potential
from fairchem_gdeq.data.is2rs import IS2RSDataset, collate
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import Operator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Problem:
    """Structures, a potential for them, and the step that its config takes.

    Attributes:
        base: an inference checkpoint, from the repository's root.
        data: folders of structures, in ``data``.
        alpha: of the operator, Angstrom per (eV/Angstrom).
        horizon: plain steps before the solver, where the config has them.
    """

    base: str
    data: tuple[str, ...]
    alpha: float
    horizon: int


PROBLEMS = {
    # configs/si/base.yaml and configs/oc25/ti.yaml
    "silicon": Problem("data/si/base/esen_all_frames.pt", ("si/test", "si/test_more"), 0.05, 20),
    "slabs": Problem("data/slabs/base/esen.pt", ("slabs/test", "slabs/test_more"), 0.01, 40),
}


def compare_each(
    parser: argparse.ArgumentParser, compare: Callable[[str, argparse.Namespace], None]
) -> None:
    """Run a program that has a table for each problem named on its command line, by default all."""
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), help="silicon, slabs")
    arguments = parser.parse_args()
    for name in arguments.problems:
        if name not in PROBLEMS:
            parser.error(f"no problem {name!r}: there are {', '.join(PROBLEMS)}")
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name in arguments.problems:
        compare(name, arguments)


@dataclass(frozen=True)
class Opened:
    """A problem's first structures, and its potential.

    Attributes:
        potential: on the CPU, in the dtype that was asked for.
        task: with the problem's alpha.
        rows: batches of one structure.
    """

    potential: Potential
    task: IS2RS
    rows: list[AtomicData]

    def operator(self, row: AtomicData, alpha: float | None = None) -> Operator:
        """G of one structure; its graph is built at every evaluation."""
        step = None if alpha is None else torch.tensor(alpha, dtype=row.pos.dtype)
        return self.task.operator_of(self.potential.field(row), row, step)

    @property
    def starts(self) -> list[Tensor]:
        """X_0 [n, 3] of each structure, Angstrom."""
        return [row.pos for row in self.rows]


def opened(problem: Problem, structures: int, dtype: torch.dtype = torch.float32) -> Opened:
    """The first structures of a problem.

    Raises:
        SystemExit: it has not as many.
    """
    potential = load_potential(ROOT / problem.base, device="cpu")
    potential.model.to(dtype)
    rows = first_rows(problem, structures, dtype, {"task_name": potential.dataset})
    return Opened(potential, IS2RS(alpha=problem.alpha, cap=0.1), rows)


def first_rows(
    problem: Problem, structures: int, dtype: torch.dtype, options: dict[str, str] | None = None
) -> list[AtomicData]:
    """The first structures of a problem, each a batch; with ``a2g_args`` of the data set.

    Raises:
        SystemExit: it has not as many.
    """
    folders = [str(ROOT / "data" / folder) for folder in problem.data]
    data = IS2RSDataset({"src": folders, "a2g_args": options or {}})
    if structures > len(data):
        raise SystemExit(
            f"{', '.join(problem.data)} have {len(data)} structures, {structures} were asked for"
        )
    rows = [collate([data[i]]) for i in range(structures)]
    for row in rows:
        for key in ("pos", "cell", "mass", "pos_relaxed"):
            row[key] = row[key].to(dtype)
    return rows
