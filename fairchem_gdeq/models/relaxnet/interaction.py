"""RelaxNet's interaction layer: a pair convolution, three-body messages, and the update (Figure 2)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from e3nn import o3
from torch import Tensor, nn

from fairchem_gdeq.models.relaxnet.geometry import Geometry, edge_pairs, zonal

REACH = 0.1  # Angstrom: how far one neighbour may move an atom between layers


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class PairConvolution(nn.Module):
    """Neighbours' features times the harmonics of their edges, weighted by the distance.

    Of the products of e3nn, scalars and vectors are kept.
    """

    def __init__(self, channels: int, radial: int, harmonics: o3.Irreps) -> None:
        """
        Args:
            channels: scalars, and vectors, of an atom.
            radial: width of the radial features.
            harmonics: of the edges.
        """
        super().__init__()
        self.channels = channels
        features = o3.Irreps([(channels, "0e"), (channels, "1o")])
        kept: list[tuple[int, o3.Irrep]] = []
        paths = []
        for i, (_, one) in enumerate(features):
            for j, (_, two) in enumerate(harmonics):
                for out in one * two:
                    if out in (o3.Irrep("0e"), o3.Irrep("1o")):
                        paths.append((i, j, len(kept), "uvu", True))
                        kept.append((channels, out))
        outputs = o3.Irreps(kept)
        self.product = o3.TensorProduct(
            features, harmonics, outputs, paths, shared_weights=False, internal_weights=False
        )
        self.weights = perceptron(radial, channels, self.product.weight_numel)
        self.mix = o3.Linear(outputs, features)

    def forward(
        self, scalars: Tensor, vectors: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Of [n, c] and [n, c, 3], sums over neighbours of the same shapes."""
        features = torch.cat([scalars, vectors.flatten(1)], dim=1)
        weights = self.weights(geometry.radial) * geometry.fade[:, None]
        graph = geometry.graph
        messages = self.product(features[graph.source], geometry.harmonics, weights)
        total = messages.new_zeros(len(scalars), messages.shape[1])
        mixed = self.mix(total.index_add(0, graph.target, messages))
        split = self.channels
        return mixed[:, :split], mixed[:, split:].view(-1, split, 3)


class TripletMessages(nn.Module):
    """Messages of pairs of edges at one atom: MLP_s and MLP_v of TripletMPNN.

    The basis B is that of Gram and Schmidt, of the two edges, without dividing by the second length:
    so it has a derivative where the edges are parallel. Its third vector would be their cross product,
    which does not change sign under a reflection. It is left out, and the energy is that of the mirror
    image.
    """

    def __init__(self, channels: int, radial: int, degree: int) -> None:
        """``degree``: the highest l of the zonal harmonics."""
        super().__init__()
        self.degree = degree
        inputs = degree + 1 + 2 * (radial + 1) + 3 * channels
        self.scalar = perceptron(inputs, channels, channels)  # MLP_s
        self.vector = perceptron(inputs, channels, 2 * channels)  # MLP_v

    def forward(self, scalars: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Of [n, c]: sums over the pairs of each atom, [n, c] and [n, c, 3]."""
        n, channels = scalars.shape
        graph = geometry.graph
        one, other = edge_pairs(geometry, n)
        target = graph.target[one]
        fades = scalars.new_zeros(len(graph.target)).index_put(
            (geometry.close,), geometry.fade_close
        )
        weight = (fades[one] * fades[other])[:, None]
        parts = [zonal(geometry, one, other, self.degree), scalars[target]]
        for edge in (one, other):
            parts += [geometry.lengths[edge][:, None], geometry.radial[edge]]
            parts.append(scalars[graph.source[edge]])
        inputs = torch.cat(parts, dim=1)
        u, v = geometry.units[one], geometry.units[other]
        basis = torch.stack([u, v - (u * v).sum(-1, keepdim=True) * u], dim=1)  # [p, 2, 3]
        factors = (self.vector(inputs) * weight).view(-1, channels, 2)
        total = scalars.new_zeros(n, channels).index_add(0, target, self.scalar(inputs) * weight)
        turned = scalars.new_zeros(n, channels, 3).index_add(0, target, factors @ basis)
        return total, turned


class InteractionLayer(nn.Module):
    """One DTNN layer: messages of pairs and triplets, and new scalars and vectors."""

    def __init__(
        self,
        channels: int,
        radial: int,
        harmonics: o3.Irreps,
        degree: int,
        neighbours: float,
        last: bool,
    ) -> None:
        """
        Args:
            channels: scalars, and vectors, of an atom.
            radial: width of the radial features.
            harmonics: of the edges.
            degree: the highest l of the zonal harmonics.
            neighbours: a usual number of neighbours, by whose root sums are divided.
            last: nobody reads its vectors. Weights that no gradient reaches have no state in the
                optimizer, and a run could not go on from its checkpoint.
        """
        super().__init__()
        self.scale = 1 / math.sqrt(neighbours)
        self.pairs = PairConvolution(channels, radial, harmonics)
        self.triplets = TripletMessages(channels, radial, degree)
        self.mixed = nn.Linear(channels, channels, bias=False)  # of vectors, channel by channel
        self.update = perceptron(4 * channels, channels, channels)
        self.gate = None if last else perceptron(channels, channels, channels)  # MLP_g
        self.factor = None if last else perceptron(2 * channels, channels, channels)  # MLP_m

    def forward(
        self, scalars: Tensor, vectors: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """New [n, c] and [n, c, 3] of those; the last layer leaves the vectors."""
        paired, paired_vectors = self.pairs(scalars, vectors, geometry)
        joint, joint_vectors = self.triplets(scalars, geometry)
        turned = self.scale * (paired_vectors + joint_vectors)
        squares = self.mixed(turned.transpose(1, 2)).square().sum(1)
        inputs = [scalars, self.scale * paired, self.scale * joint, squares]
        scalars = scalars + self.update(torch.cat(inputs, dim=1))
        if self.gate is None or self.factor is None:
            return scalars, vectors
        factor = self.factor(torch.cat([scalars, squares], dim=1))
        vectors = factor[..., None] * turned + self.gate(scalars).sigmoid()[..., None] * vectors
        return scalars, vectors


class Displacements(nn.Module):
    """Moves of the atoms between two layers, MLP_c times the directions of their neighbours."""

    def __init__(self, channels: int, radial: int) -> None:
        super().__init__()
        self.pull = perceptron(2 * channels + radial, channels, 1)

    def forward(self, scalars: Tensor, geometry: Geometry) -> Tensor:
        """Of [n, c], moves [n, 3], Angstrom; each neighbour adds at most ``REACH``."""
        graph = geometry.graph
        ends = [scalars[graph.target], scalars[graph.source], geometry.radial]
        pull = REACH * self.pull(torch.cat(ends, dim=1)).tanh() * geometry.fade[:, None]
        none = geometry.units.new_zeros(len(scalars), 3)
        return none.index_add(0, graph.target, pull * geometry.units)
