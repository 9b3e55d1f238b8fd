"""RelaxNet's energy: attention, a perceptron of each atom, their sum; forces are its gradient."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HeadInterface
from torch import Tensor, nn

from fairchem_gdeq.models.relaxnet.attention import NeighbourAttention
from fairchem_gdeq.models.relaxnet.backbone import RelaxNetBackbone
from fairchem_gdeq.models.relaxnet.geometry import Geometry
from fairchem_gdeq.models.relaxnet.interaction import perceptron
from fairchem_gdeq.relax.segments import segment_sum


@registry.register_model("relaxnet_energy")
class RelaxNetHead(nn.Module, HeadInterface):
    """E [s] in eV, and F = -dE/dx.

    Attributes:
        references: [119], eV: the energy of an atom of each element, added to what is learnt. Fitted to
            the training data (``fit_references``), zero before.
    """

    references: Tensor

    def __init__(self, backbone: RelaxNetBackbone, heads: int = 4) -> None:
        """
        Args:
            backbone: whose embeddings it reads.
            heads: of the attention.

        Raises:
            ValueError: heads do not divide the width.
        """
        super().__init__()
        self.attention = NeighbourAttention(backbone.width, heads, backbone.radial_width)
        self.energy = perceptron(backbone.width, backbone.width, 1)
        self.register_buffer("references", torch.zeros(backbone.max_num_elements))
        self.regress_config = backbone.regress_config

    def energies(
        self, embedding: Tensor, geometry: Geometry, numbers: Tensor, batch: Tensor, count: int
    ) -> Tensor:
        """E [s], eV, of embeddings [n, width] and a geometry.

        Args:
            embedding, geometry: those.
            numbers: [n], of the elements.
            batch: [n], the structure of each atom, of ``count``.
        """
        each = self.energy(self.attention(embedding, geometry)).squeeze(-1)
        learnt = segment_sum(each, batch, count)
        return learnt + segment_sum(self.references[numbers].to(each), batch, count)

    def forward(self, data: AtomicData, emb: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """``energy`` [s] and ``forces`` [n, 3], as fairchem's conservative heads name them."""
        numbers, batch, count = data["atomic_numbers"], data["batch"], len(data["natoms"])
        with torch.enable_grad():
            energy = self.energies(emb["node_embedding"], emb["geometry"], numbers, batch, count)
            forces = gradient_forces(energy, data["pos"], self.training)
        if not self.training:
            energy = energy.detach()
        return {"energy": {"energy": energy}, "forces": {"forces": forces}}

    @torch.no_grad()
    def fit_references(self, counts: Tensor, energies: Tensor) -> None:
        """Least squares of energies [m] (eV) by the numbers of atoms of each element, [m, 119].

        Of all solutions where elements only come together, the shortest.
        """
        found = torch.linalg.pinv(counts.double()) @ energies.double()
        self.references.copy_(found)


def gradient_forces(energy: Tensor, positions: Tensor, differentiable: bool) -> Tensor:
    """-dE/dx [n, 3] of energies [s]; a graph of it is kept where it is to be ``differentiable``."""
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=differentiable)
    return -slope
