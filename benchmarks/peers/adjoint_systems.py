"""The adjoint system (I - J_G)^T w = g of eq. 4 at fixed points, and who solves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.kept import Measured, not_installed
from benchmarks.peers.problems import Opened
from benchmarks.peers.relaxations import in_flight
from fairchem_gdeq.relax import GMRES, LBFGS, LogDeltaQ, Operator, Relaxer
from fairchem_gdeq.relax.adjoints.base import norms, system
from fairchem_gdeq.relax.linearised import Linearised

BACKWARD_SOLVERS = ("fixed_point_iter", "anderson", "broyden")  # of TorchDEQ


@dataclass(frozen=True)
class System:
    """One structure's system, undamped.

    Attributes:
        operator: G with its graph frozen at X*.
        positions: [n, 3] X*, Angstrom.
        g: [n, 3] gradient of the loss at X*, of length 1: TorchDEQ's criteria and its Anderson's
            regularisation are absolute.
    """

    operator: Operator
    positions: Tensor
    g: Tensor

    def linearised(self) -> Linearised:
        """G with one graph for all VJPs at X*, not built yet: whoever solves pays for it."""
        return Linearised.at(self.operator, self.positions)


@dataclass(frozen=True)
class Solved:
    """w [n, 3] of one structure, and the VJPs spent on it."""

    w: Tensor
    vjps: int


Solver = Callable[[Sequence[System], float, int], list[Solved]]  # systems, tolerance, most VJPs


def fixed_points(given: Opened, fmax: float, budget: int) -> list[Tensor | None]:
    """X* [n, 3] of each structure, Angstrom; None where it was not reached."""
    operators = [given.operator(row) for row in given.rows]
    way = Relaxer(0, LBFGS(), fmax, 500)
    ends = in_flight(operators, given.starts, way, budget)
    return [end.positions if end.converged else None for end in ends]


def systems_at(given: Opened, points: Sequence[Tensor | None]) -> list[System]:
    """Those of the structures that have a fixed point and a gradient there, in the problem's dtype."""
    found = []
    for row, point in zip(given.rows, points, strict=True):
        if point is None:
            continue
        x = point.to(row.pos.dtype)
        operator = given.operator(row).freeze(x)
        leaf = x.clone().requires_grad_(True)
        loss = LogDeltaQ()(leaf, row.pos_relaxed, operator.structures, operator.pin)
        (g,) = torch.autograd.grad(loss.sum(), leaf)
        g = operator.project(g, x)
        if bool(g.norm() > 0):
            found.append(System(operator, x, g / g.norm()))
    return found


def gmres_alone(systems: Sequence[System], tol: float, most: int) -> list[Solved]:
    """Ours with its default restart, one structure at a time."""
    return [solved for each in systems for solved in gmres_batched([each], tol, most)]


def gmres_batched(systems: Sequence[System], tol: float, most: int) -> list[Solved]:
    """Ours with its default restart, all structures in the same VJPs."""
    x, g = (torch.cat([getattr(each, key) for each in systems]) for key in ("positions", "g"))
    first, *others = (each.operator for each in systems)
    whole = Linearised.at(first.join(others), x)
    answer = GMRES(tol=tol, max_vjps=most, damping=0.0)(whole, x, g)
    parts = answer.u.split(whole.structures.sizes)
    return [Solved(w, n) for w, n in zip(parts, answer.vjps.tolist(), strict=True)]


def torchdeq(name: str, systems: Sequence[System], tol: float, most: int) -> list[Solved]:
    """A backward solver of TorchDEQ, on w = g + J_G^T w from zero, as its implicit gradient does.

    Raises:
        NotInstalled: there is no TorchDEQ.
    """
    try:
        from torchdeq.solver import get_solver
    except ImportError as error:
        not_installed("torchdeq", error)
    found = []
    for each in systems:
        operator, x, g, calls = each.linearised(), each.positions, each.g, [0]

        def onward(w: Tensor, **_: float) -> Tensor:
            calls[0] += 1  # noqa: B023 - called in this turn of the loop only
            vector = operator.vjp(x, w.view_as(x))  # noqa: B023
            return (g + operator.project(vector, x)).view_as(w)  # noqa: B023

        try:
            with torch.no_grad():
                w, _, _ = get_solver(name)(
                    onward, torch.zeros_like(x).view(1, -1), max_iter=most, tol=tol, stop_mode="abs"
                )
        except torch.linalg.LinAlgError:  # iterates that have grown beyond all bounds
            w = torch.full_like(x, torch.nan)
        found.append(Solved(w.view_as(x), calls[0]))
    return found


def dense(systems: Sequence[System], tol: float, most: int) -> list[Solved]:
    """The matrix of the system, a VJP for each free coordinate, and one factorisation.

    Its accuracy is that of the arithmetic, whatever ``tol``; neither does ``most`` bound it.
    """
    found = []
    for each in systems:
        operator, x = each.linearised(), each.positions
        free = each.operator.structures.free[:, None].expand_as(x).reshape(-1).nonzero().squeeze(-1)
        units = torch.eye(x.numel(), dtype=x.dtype)[free]
        columns = [system(operator, x, e.view_as(x), 0.0).reshape(-1)[free] for e in units]
        w = torch.zeros(x.numel(), dtype=x.dtype)
        w[free] = torch.linalg.solve(torch.stack(columns, dim=1), each.g.reshape(-1)[free])
        found.append(Solved(w.view_as(x), len(free)))
    return found


def residual(each: System, w: Tensor) -> float:
    """|g - (I - J_G)^T w| / |g|; NaN where w is not finite."""
    error = each.g - system(each.linearised(), each.positions, w, 0.0)
    return float(norms(each.operator, error) / norms(each.operator, each.g))


def measure(solve: Solver, systems: Sequence[System], tol: float, most: int) -> Measured:
    """Seconds of all systems together, and VJPs and true residual of each; for ``Kept``."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(systems, tol, most)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall": wall,
        "cpu": cpu,
        "vjps": [each.vjps for each in found],
        "residual": [residual(s, each.w) for s, each in zip(systems, found, strict=True)],
    }
