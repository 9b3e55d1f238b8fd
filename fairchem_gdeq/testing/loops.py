"""Every loop of the method on structures that settle, leave and join at different times.

For counting what a loop asks of a device: the field is two kernels and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.batching.streams import Request, Stream
from fairchem_gdeq.relax import ADJOINTS, LBFGS, SOLVERS, Operator, Relaxer, solve
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.relax.segments import to_device
from fairchem_gdeq.testing.fields import structures

SIZES = (4, 3, 5, 2, 6, 4, 3, 5)


@dataclass(frozen=True)
class Springs:
    """F = k (site - x); ``calls`` gets an entry for each evaluation of all that come from one."""

    sites: Tensor
    stiffness: Tensor
    sizes: tuple[int, ...]
    calls: list[int] = field(default_factory=list)
    translation_invariant = True
    rotation_equivariant = False

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.stiffness * (self.sites - x)

    def select(self, mask: Tensor) -> Springs:
        rows = mask.repeat_interleave(torch.tensor(self.sizes)).nonzero().squeeze(-1)
        atoms = to_device(rows, self.sites.device)
        sizes = tuple(n for n, kept in zip(self.sizes, mask.tolist(), strict=True) if kept)
        return Springs(self.sites[atoms], self.stiffness[atoms], sizes, self.calls)

    def join(self, others: Sequence[Springs]) -> Springs:
        parts = [self, *others]
        sites = torch.cat([part.sites for part in parts])
        stiffness = torch.cat([part.stiffness for part in parts])
        return Springs(sites, stiffness, tuple(n for p in parts for n in p.sizes), self.calls)

    def freeze(self, positions: Tensor) -> Springs:
        return self

    def unfreeze(self) -> Springs:
        return self


def problem(device: torch.device) -> tuple[Operator, Tensor]:
    """An operator with drift taken out, and a start; in the default precision."""
    generator, n = torch.Generator().manual_seed(0), sum(SIZES)
    sites = torch.randn(n, 3, generator=generator)
    start = sites + torch.randn(n, 3, generator=generator)
    stiffness = 0.5 + 5 * torch.rand(n, 1, generator=generator)
    springs = Springs(sites.to(device), stiffness.to(device), SIZES)
    s = structures(list(SIZES)).on(device)
    alpha = torch.tensor(0.05).to(device)
    return Operator.build(springs, s, alpha, cap=0.1), start.to(device)


def _solve(name: str, operator: Operator, start: Tensor) -> list[int]:
    return solve(operator, start, SOLVERS[name](), 1e-3, 250).steps.tolist()


def _rollout(operator: Operator, start: Tensor) -> list[int]:
    return rollout(operator, start, 40, 0.5).evaluations.tolist()


def _adjoint(name: str, operator: Operator, start: Tensor) -> list[int]:
    g = start * torch.linspace(0.5, 2.0, len(start)).to(start.device)[:, None]
    adjoint = ADJOINTS[name](tol=1e-6, max_vjps=100, damping=0.05)
    return adjoint(operator, start, g).vjps.tolist()


def _stream(horizon: int, operator: Operator, start: Tensor) -> list[int]:
    masks = torch.eye(operator.structures.count, dtype=torch.bool)
    requests = [
        Request(k, operator.select(mask), start[operator.structures.atoms_of(mask)])
        for k, mask in enumerate(masks)
    ]
    way = Relaxer(horizon, LBFGS(), 1e-3, 200)
    return [end.steps for end in Stream(requests, way, 14)]


LOOPS: dict[str, Callable[[Operator, Tensor], Any]] = {
    **{f"solve, {s}": partial(_solve, s) for s in ("picard", "anderson", "fire", "lbfgs")},
    "rollout": _rollout,
    **{name: partial(_adjoint, name) for name in ("gmres", "neumann")},
    "stream, no guidance": partial(_stream, 0),
    "stream, guidance first": partial(_stream, 6),
}
