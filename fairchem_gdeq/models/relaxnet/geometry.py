"""What RelaxNet sees of a structure: edges, their harmonics and radial features, and pairs of edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from fairchem_gdeq.models.relaxnet.radial import RadialBasis, envelope
from fairchem_gdeq.relax.segments import segment_count, transformed


class Graph(NamedTuple):
    """Edges of a batch: which atoms, and by which lattice vectors apart.

    Attributes:
        source, target: [e] int64.
        shift: [e, 3], Angstrom: x_source - x_target + shift is the edge's vector.
    """

    source: Tensor
    target: Tensor
    shift: Tensor

    @classmethod
    def of(cls, edge_index: Tensor, offsets: Tensor, cell: Tensor, batch: Tensor) -> Graph:
        """From fairchem's ``edge_index`` [2, e] and ``cell_offsets`` [e, 3] (whole numbers)."""
        source, target = edge_index
        return cls(source, target, transformed(offsets.to(cell), cell[batch[target]]))

    def vectors(self, positions: Tensor) -> Tensor:
        """[e, 3] from target to source at positions [n, 3], Angstrom."""
        return positions[self.source] - positions[self.target] + self.shift

    def within(self, cutoff: float, positions: Tensor) -> Graph:
        """The edges that are shorter than that at positions [n, 3], Angstrom."""
        with torch.no_grad():
            short = self.vectors(positions).norm(dim=-1) < cutoff
        return Graph(*(each[short] for each in self))


@dataclass(frozen=True)
class Geometry:
    """A graph at positions.

    Attributes:
        graph: its edges.
        vectors: [e, 3] from target to source, Angstrom.
        lengths: [e], Angstrom.
        units: [e, 3], of length 1.
        radial: [e, k] features of the distance.
        harmonics: [e, (l + 1)^2] of e3nn, in its normalization ``component``.
        fade: [e], 1 at short distance and 0 at the cutoff; every message has it as a factor.
        close: [t] numbers of the edges within the three-body cutoff, sorted by target.
        fade_close: [t], as ``fade``, for that cutoff.
    """

    graph: Graph
    vectors: Tensor
    lengths: Tensor
    units: Tensor
    radial: Tensor
    harmonics: Tensor
    fade: Tensor
    close: Tensor
    fade_close: Tensor


class Measure(nn.Module):
    """Makes a ``Geometry``; has the settings of its features and no weights."""

    def __init__(self, radial: RadialBasis, triplet_cutoff: float) -> None:
        """
        Args:
            radial: the radial basis; its degree is that of the harmonics.
            triplet_cutoff: Angstrom, of the pairs of edges; at most the cutoff.

        Raises:
            ValueError: it is above the cutoff.
        """
        super().__init__()
        if not 0 < triplet_cutoff <= radial.cutoff:
            raise ValueError(
                f"triplet_cutoff={triplet_cutoff}: expected a distance above 0 and at most "
                f"cutoff={radial.cutoff}"
            )
        self.radial, self.triplet_cutoff = radial, triplet_cutoff
        self.irreps = o3.Irreps.spherical_harmonics(radial.degree)

    def forward(self, graph: Graph, positions: Tensor) -> Geometry:
        """At positions [n, 3], Angstrom."""
        vectors = graph.vectors(positions)
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
        close = (lengths < self.triplet_cutoff).nonzero().squeeze(-1)
        close = close[torch.argsort(graph.target[close], stable=True)]
        return self._described(
            graph,
            vectors,
            lengths,
            envelope(lengths, self.radial.cutoff),
            close,
            envelope(lengths[close], self.triplet_cutoff),
        )

    def moved(self, geometry: Geometry, moves: Tensor) -> Geometry:
        """The features after displacements [n, 3], Angstrom, of the same edges.

        They fade with the distance of before: an edge that is not in the graph has no message, wherever
        its atoms are moved to.
        """
        graph = geometry.graph
        vectors = geometry.vectors + moves[graph.source] - moves[graph.target]
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
        return self._described(
            graph, vectors, lengths, geometry.fade, geometry.close, geometry.fade_close
        )

    def _described(
        self,
        graph: Graph,
        vectors: Tensor,
        lengths: Tensor,
        fade: Tensor,
        close: Tensor,
        fade_close: Tensor,
    ) -> Geometry:
        harmonics = o3.spherical_harmonics(self.irreps, vectors, True, "component")
        units = vectors / lengths[:, None]
        radial = self.radial(lengths)
        return Geometry(graph, vectors, lengths, units, radial, harmonics, fade, close, fade_close)


def edge_pairs(geometry: Geometry, atoms: int) -> tuple[Tensor, Tensor]:
    """Ordered pairs of two different close edges of one target, of ``atoms`` atoms: [p] and [p]."""
    target = geometry.graph.target[geometry.close]
    number = segment_count(target, atoms)  # of close edges of an atom
    first = number.cumsum(0) - number
    repeats = number[target]
    one = torch.arange(len(target), device=target.device).repeat_interleave(repeats)
    begin = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    place = torch.arange(len(one), device=target.device) - begin
    other = first[target[one]] + place
    different = one != other
    return geometry.close[one[different]], geometry.close[other[different]]


def zonal(geometry: Geometry, one: Tensor, other: Tensor, degree: int) -> Tensor:
    """P_0(cos) ... P_degree(cos) of the angle between edges [p] and [p]: [p, degree + 1].

    By the addition theorem, the products of their harmonics: the zonal harmonics without an angle, which
    has no derivative where edges are parallel.
    """
    products = geometry.harmonics[one] * geometry.harmonics[other]
    sizes = [2 * order + 1 for order in range(degree + 1)]
    return torch.stack([part.mean(-1) for part in products.split(sizes, dim=-1)], dim=-1)
