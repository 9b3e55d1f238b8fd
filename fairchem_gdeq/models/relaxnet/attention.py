"""RelaxNet's attention block: atoms look at their neighbours, at the positions of the moment."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fairchem_gdeq.models.relaxnet.geometry import Geometry


class NeighbourAttention(nn.Module):
    """Multi-head attention of each atom over itself and its neighbours.

    The weight of a neighbour has the envelope as a factor, before weights are made to sum to 1, so that
    one that enters or leaves the graph has none. Distances enter the weights and the values, so the
    result depends on the positions also where the embeddings do not (explicit evolution).
    """

    def __init__(self, width: int, heads: int, radial: int) -> None:
        """
        Args:
            width: of the embeddings.
            heads: that divide it.
            radial: width of the radial features.

        Raises:
            ValueError: heads do not divide the width.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads, self.size = heads, width // heads
        self.own = nn.Linear(width, 3 * width)
        self.bias = nn.Linear(radial, heads)
        self.filter = nn.Linear(radial, width)
        self.out = nn.Linear(width, width)

    def forward(self, embedding: Tensor, geometry: Geometry) -> Tensor:
        """[n, width] of the same."""
        n, width = embedding.shape
        source, target, _ = geometry.graph
        query, key, value = self.own(embedding).chunk(3, dim=1)
        shape = (-1, self.heads, self.size)
        query, key = query.view(shape) / math.sqrt(self.size), key.view(shape)
        alone = (query * key).sum(-1)
        # Bounded, so that no largest one has to be taken off before the exponential.
        near = (query[target] * key[source]).sum(-1) + self.bias(geometry.radial)
        alone, near = (30 * (each / 30).tanh() for each in (alone, near))
        near = near.exp() * geometry.fade[:, None]
        total = alone.exp().index_add(0, target, near)
        seen = (value[source] * self.filter(geometry.radial)).view(shape) * near[..., None]
        mixed = (value.view(shape) * alone.exp()[..., None]).index_add(0, target, seen)
        out: Tensor = embedding + self.out((mixed / total[..., None]).reshape(n, width))
        return out
