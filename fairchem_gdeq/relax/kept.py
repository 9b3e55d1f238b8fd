"""Graphs of the guidance window that are kept for its gradient, as many as a memory budget holds.

The sweep evaluates each step of the window a second time, for its graph. A graph that was kept from
the rollout saves that evaluation: 3 units instead of 4 for the step, and the same gradient.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

# Of a graph: what the first backward takes besides all graphs that are kept, with room to spare. With the
# shipped eSEN it takes less than a quarter.
BACKWARD = 0.5

Memory = str | float | None
"""``"4GB"``, ``"500MB"``, a number of bytes, a share of a GPU's memory below 1, or None for nothing."""


def memory_of(key: str, value: Memory) -> float:
    """Bytes, or a share of the device's memory below 1; 0 for none.

    Raises:
        ValueError: it cannot be meant; names the key.
    """
    if value is None:
        return 0.0
    text = str(value).strip()
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)", text)
    try:
        number = float(found[1]) * UNITS[found[2].upper()] if found else None
    except (KeyError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or not 0 < number < float("inf"):
        raise ValueError(
            f'{key}={value!r}: expected a size such as "4GB" or "500MB", a number of bytes, a share '
            "of the GPU's memory between 0 and 1, or null for none"
        )
    return number


def bytes_on(device: torch.device, key: str, value: Memory) -> int:
    """The budget on a device.

    Raises:
        ValueError: a share of the memory of a device that is no GPU, or as ``memory_of``.
    """
    number = memory_of(key, value)
    if 0 < number < 1:
        if device.type != "cuda":
            raise ValueError(
                f"{key}={value!r}: a share is one of a GPU's memory, and this runs on the device "
                f'{device.type}. Expected a size such as "4GB"'
            )
        number *= torch.cuda.get_device_properties(device).total_memory
    return int(number)


@dataclass
class Kept:
    """The graph of one plain step, for one backward.

    Attributes:
        x: [m, 3] X_t as the graph's leaf, Angstrom; None once used or released.
        out: [m, 3] X_{t+1} with its graph; None with ``x``.
        before, velocity: [m, 3] v_{t-1} as a leaf, and v_t with its graph; None without momentum.
    """

    x: Tensor | None
    out: Tensor | None
    before: Tensor | None = None
    velocity: Tensor | None = None

    @classmethod
    def of(
        cls, operator: Operator, positions: Tensor, before: Tensor | None, done: Tensor
    ) -> tuple[Kept, Tensor, Tensor]:
        """The graph of the step from positions [m, 3]; forces and displacement [m, 3] are in it.

        ``before`` and ``done`` as for ``Operator.plain_step``.
        """
        with torch.enable_grad():
            x = positions.detach().requires_grad_(True)
            v = None if before is None else before.detach().requires_grad_(True)
            forces = operator.forces(x)
            move, velocity = operator.plain_step(x, forces, v, done)
            return cls(x, x + move, v, velocity), forces, move

    def __bool__(self) -> bool:
        return self.out is not None

    def release(self) -> None:
        """Free its memory."""
        self.x = self.out = self.before = self.velocity = None

    def vjp(
        self, vector: Tensor, carried: Tensor | None, operator: Operator
    ) -> tuple[Tensor, Tensor | None]:
        """Adjoints [m, 3] of X_t and v_{t-1} from those of X_{t+1} and v_t; it is used up.

        Those of the parameters are added to their ``.grad``. Components on fixed atoms are zero on
        return, as in ``Operator.vjp``.
        """
        assert self.x is not None and self.out is not None
        if carried is None:
            torch.autograd.backward(self.out, vector)
        else:
            assert self.velocity is not None
            torch.autograd.backward([self.out, self.velocity], [vector, carried])
        grad, back = self.x.grad, None if self.before is None else self.before.grad
        self.release()
        assert grad is not None
        return torch.where(operator.structures.free[:, None], grad, 0.0), back


class Window:
    """The latest applications of G whose graphs fit into a budget, with room for one's backward.

    What one takes is measured on the first. Later ones take no more: structures only leave. Which
    step will be the last is not known before, since all structures may settle early, so every step's
    graph is built, and the oldest one freed to make room.
    """

    def __init__(self, budget: int) -> None:
        """``budget``: bytes; 0 keeps none."""
        self.budget = budget
        self.fits: int | None = None if budget else 0
        self._held: deque[Kept] = deque()

    def apply(
        self, operator: Operator, positions: Tensor, before: Tensor | None, done: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Kept | None]:
        """Forces, displacement and velocity [m, 3], and their graph if there is room for any.

        What is returned beside a kept graph has none itself. ``before`` and ``done`` as for
        ``Operator.plain_step``.
        """
        if self.fits == 0:
            forces = operator.forces(positions)
            return forces, *operator.plain_step(positions, forces, before, done), None
        if self.fits is not None and len(self._held) == self.fits:
            self._held.popleft().release()
        with nullcontext() if self.fits is not None else graph_bytes(positions.device) as taken:
            kept, forces, move = Kept.of(operator, positions, before, done)
        if taken is not None:
            assert kept.out is not None
            self.fits = max(int(self.budget / max(taken(kept.out), 1) - BACKWARD), 0)
        velocity = None if kept.velocity is None else kept.velocity.detach()
        if not self.fits:
            return forces.detach(), move.detach(), velocity, None
        self._held.append(kept)
        return forces.detach(), move.detach(), velocity, kept


@contextmanager
def graph_bytes(device: torch.device) -> Iterator[Callable[[Tensor], int]]:
    """Measures the memory that a graph made inside holds; gives a function of its result.

    On a GPU it is what is allocated more than before. Elsewhere it is the storage of the tensors that
    are saved for the backward, each counted once and parameters not at all.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield lambda out: torch.cuda.memory_allocated(device) - before
        return
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # an output that its own node holds would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda out: sum({**storages, **dict.fromkeys(_leaves(out), 0)}.values())


def _storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common, on any device."""
    return int(tensor.untyped_storage()._cdata)


def _leaves(out: Tensor) -> set[int]:
    """The storages of what a graph is differentiated by: the model has them anyway."""
    found: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(_storage(node.variable))
        nodes.extend(parent for parent, _ in node.next_functions)
    return found
