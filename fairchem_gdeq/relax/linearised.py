"""One linearisation of G for all the VJPs at one X: those of an adjoint solve at X* (eq. 4).

``Operator.vjp`` evaluates the potential at each call, because the positions may be others. At X* they
are not, so the graph of one evaluation serves them all, and each VJP is a backward alone. Memory is
that of one evaluation, however many VJPs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from fairchem_gdeq.relax.operator import Operator
from fairchem_gdeq.relax.segments import atoms_where


@dataclass
class _Graph:
    """The graph of G at X, shared by the restrictions of one linearisation.

    Attributes:
        x: [m, 3] X as the graph's leaf, Angstrom; None where there is no graph.
        out: [m, 3] G(x) with its graph; None with ``x``.
        covered: [S] bool on the host, the structures that it is of.
        served: backwards so far.
        wasted: atoms that were not asked for, summed over the backwards.
        reusable: False once the field has refused a second backward.
    """

    x: Tensor | None = None
    out: Tensor | None = None
    covered: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    served: int = 0
    wasted: int = 0
    reusable: bool = True

    def release(self) -> None:
        """Free its memory."""
        self.x = self.out = None

    def covers(self, members: Tensor, exactly: bool) -> bool:
        """Whether there is a graph of the structures where the mask [S] holds, or of more."""
        if self.out is None:
            return False
        return bool((self.covered == members).all() if exactly else self.covered[members].all())


@dataclass(frozen=True)
class Linearised(Operator):
    """G whose VJPs are all at one X; an adjoint takes it for the operator.

    A restriction by ``select`` shares the graph, in which the vector of the other structures is zero.
    They cost their part of each backward nevertheless. So once as much has been wasted on them as an
    evaluation of the rest costs, the graph is built anew for the rest: at most twice the cost of
    knowing beforehand when each structure would leave.

    Attributes:
        point: [N, 3] X of the S structures of the whole linearisation, Angstrom.
        sizes: their numbers of atoms.
        members: [S] bool on the host, those of this restriction.
        rows: [n] indices of its atoms in ``point``.
        graph: what the restrictions share.
    """

    point: Tensor
    sizes: tuple[int, ...]
    members: Tensor
    rows: Tensor
    graph: _Graph

    @classmethod
    def at(cls, operator: Operator, positions: Tensor) -> Linearised:
        """The linearisation of an operator at positions [n, 3]; nothing is evaluated yet."""
        own = {each.name: getattr(operator, each.name) for each in fields(Operator)}
        return cls(
            **own,
            point=positions.detach(),
            sizes=operator.structures.sizes,
            members=torch.ones(operator.structures.count, dtype=torch.bool),
            rows=torch.arange(len(positions), device=positions.device),
            graph=_Graph(),
        )

    def vjp(self, positions: Tensor, vector: Tensor, accumulate: bool = False) -> Tensor:
        """As ``Operator.vjp``, by one backward through the graph at X; NaN for atoms that are not at X.

        With ``accumulate`` the graph is used for the last time, and freed.
        """
        point = self.point[self.rows]
        grad = self._last(vector) if accumulate else self._through_graph(point, vector)
        if grad is None:
            self.graph.release()
            grad = super().vjp(point, vector, accumulate)
        grad = torch.where(self.structures.free[:, None], grad, 0.0)
        return torch.where(positions == point, grad, torch.nan)

    def _through_graph(self, point: Tensor, vector: Tensor) -> Tensor | None:
        """lam^T dG/dX [n, 3] by the shared graph; None if the field cannot go through it twice."""
        graph = self.graph
        if not graph.reusable:
            return None
        if not graph.covers(self.members, False) or graph.wasted >= len(point):
            graph.release()  # first, so that there is one at a time
            with torch.enable_grad():
                graph.x = point.clone().requires_grad_(True)
                graph.out = self(graph.x)
            graph.covered, graph.served, graph.wasted = self.members, 0, 0
        assert graph.x is not None and graph.out is not None
        rows = None
        if len(point) < len(graph.x):
            sizes = [
                n for n, there in zip(self.sizes, graph.covered.tolist(), strict=True) if there
            ]
            rows = atoms_where(self.members[graph.covered], sizes, point.device)
            vector = torch.zeros_like(graph.x).index_copy(0, rows, vector)
        try:
            (grad,) = torch.autograd.grad(graph.out, graph.x, vector, retain_graph=True)
        except RuntimeError:
            # A model compiled elsewhere, or with a backward of its own, may go through it only once.
            graph.reusable = False
            return None
        graph.served += 1
        graph.wasted += len(graph.x) - len(point)
        return grad if rows is None else grad[rows]

    def _last(self, vector: Tensor) -> Tensor | None:
        """The same, and parameters' gradients added to their ``.grad``; None if no graph will do.

        It has to be of these structures alone: where another one's derivative by the parameters is
        infinite, 0 times infinity would be in the sum. And it has to have shown that it can be used
        again: a backward that fails half way has added a part already.
        """
        graph = self.graph
        if not (graph.covers(self.members, True) and graph.served > 1):
            return None
        assert graph.x is not None and graph.out is not None
        torch.autograd.backward(graph.out, vector)
        grad = graph.x.grad
        graph.release()
        return grad

    def plain(self) -> Operator:
        """The operator itself, which evaluates the field in every VJP."""
        return Operator(**{each.name: getattr(self, each.name) for each in fields(Operator)})

    def select(self, structures: Tensor) -> Linearised:
        """The restriction to the structures where the mask holds; it shares the graph."""
        mask = structures.cpu()
        if bool(mask.all()):
            return self
        part = self.plain().select(mask)
        return replace(
            self,
            field=part.field,
            structures=part.structures,
            pinned=part.pinned,
            pin=part.pin,
            members=self.members.masked_scatter(self.members, mask),
            rows=self.rows[self.structures.atoms_of(mask)],
        )

    def join(self, others: Sequence[Operator]) -> Operator:
        """As ``Operator.join``: a plain operator again."""
        return self.plain().join(others)

    def freeze(self, positions: Tensor) -> Operator:
        """As ``Operator.freeze``: a plain operator again."""
        return self.plain().freeze(positions)

    def unfreeze(self) -> Operator:
        """As ``Operator.unfreeze``: a plain operator again."""
        return self.plain().unfreeze()
