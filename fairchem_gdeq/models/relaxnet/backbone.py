"""RelaxNet's encoder as a fairchem 2 backbone, with what its neural ODE needs besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from e3nn import o3
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import BackboneInterface
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import Tensor, nn

from fairchem_gdeq.frozen.cells import inverse_cells, with_positions
from fairchem_gdeq.models.descriptors import PROPERTIES, descriptor_table
from fairchem_gdeq.models.inference import PlainInference
from fairchem_gdeq.models.neighbours import radius_edges
from fairchem_gdeq.models.relaxnet.geometry import Geometry, Graph, Measure
from fairchem_gdeq.models.relaxnet.interaction import (
    Displacements,
    InteractionLayer,
    perceptron,
)
from fairchem_gdeq.models.relaxnet.radial import RadialBasis

EVOLUTIONS = ("explicit", "implicit")


@registry.register_model("relaxnet_backbone")
class RelaxNetBackbone(PlainInference, nn.Module, BackboneInterface):
    """Interaction layers with residual connections, whose scalars are joined to one embedding.

    ``RelaxNetHead`` makes an energy of it, and forces as its gradient: together an ordinary potential.
    The neural ODE (``fairchem_gdeq.relaxnet``) asks it for the rest: ``velocity`` gives u(0), and
    ``latent`` is the rate of the embedding where that evolves explicitly, else None.
    """

    always_use_pbc = False
    enforce_max_neighbors_strictly = False
    radius_pbc_version = 2
    max_num_elements = 119
    descriptors: Tensor

    def __init__(
        self,
        channels: int = 32,
        layers: int = 2,
        cutoff: float = 4.2,
        triplet_cutoff: float = 3.2,
        max_neighbors: int = 300,
        lmax: int = 2,
        zonal_lmax: int = 2,
        radial: Sequence[str] = ("bessel", "gaussian"),
        radial_count: int = 8,
        neighbours: float = 16.0,
        evolution: str = "explicit",
        duration: float = 1.0,
    ) -> None:
        """
        Args:
            channels: scalars, and vectors, of an atom; also the width of the embedding.
            layers: number of interaction layers; the paper has 2.
            cutoff, triplet_cutoff: Angstrom, of pairs, and of both edges of a triplet.
            max_neighbors: of an atom; far above what the cutoff holds, so that none is left out.
            lmax: highest degree of the edges' harmonics.
            zonal_lmax: highest degree of the angles'; at most ``lmax``, by whose products they are made.
            radial: ``bessel``, ``gaussian`` or both.
            radial_count: functions of each kind and degree.
            neighbours: a usual number of neighbours within the cutoff.
            evolution: of the embedding h in the ODE. ``explicit``: h is a state, with a rate of its own;
                ``implicit``: h is that of the encoder at the positions of the moment.
            duration: physical time of a whole path, whose pseudotime runs from 0 to 1, in units of
                sqrt(amu/eV) Angstrom (10.18 fs): du/dt is duration^2 F/m.

        Raises:
            ValueError: an unknown radial basis or evolution, no duration, cutoffs or degrees that do not
                fit each other.
        """
        super().__init__()
        if zonal_lmax > lmax:
            raise ValueError(f"zonal_lmax={zonal_lmax}: expected at most lmax={lmax}")
        if evolution not in EVOLUTIONS:
            raise ValueError(f"evolution={evolution!r}: choose one of {', '.join(EVOLUTIONS)}")
        if not duration > 0:
            raise ValueError(f"duration={duration}: expected a time above 0")
        self.duration = duration
        self.cutoff, self.max_neighbors, self.width = cutoff, max_neighbors, channels
        basis = RadialBasis(radial, radial_count, cutoff, lmax)
        self.radial_width = basis.width
        self.measure = Measure(basis, triplet_cutoff)
        self.register_buffer("descriptors", descriptor_table().to(torch.get_default_dtype()))
        self.element = nn.Embedding(self.max_num_elements, channels)
        self.describe = nn.Linear(len(PROPERTIES), channels)
        harmonics = o3.Irreps.spherical_harmonics(lmax)
        self.interactions = nn.ModuleList(
            InteractionLayer(
                channels, basis.width, harmonics, zonal_lmax, neighbours, last=layer == layers - 1
            )
            for layer in range(layers)
        )
        self.moves = nn.ModuleList(Displacements(channels, basis.width) for _ in range(layers - 1))
        self.join = nn.Linear((layers + 1) * channels, channels)
        self.push = perceptron(2 * channels + basis.width, channels, 1)
        explicit = evolution == "explicit"
        self.latent = perceptron(channels, 2 * channels, channels) if explicit else None
        for rate in filter(None, (self.push, self.latent)):  # the untrained ODE starts at rest
            for parameter in rate[-1].parameters():
                nn.init.zeros_(parameter)
        self.otf_graph = True
        # What fairchem's predictor, and our force fields, ask of every backbone.
        self.regress_config = GradRegressConfig(direct_forces=False, forces=True)

    # ---- the parts ---------------------------------------------------------------------------

    def graph(self, data: AtomicData, widen: float = 0.0) -> Graph:
        """The neighbours at the positions of a batch; nothing is differentiated.

        ``widen`` is added to the cutoff, Angstrom, where the graph is not one that the batch brings.
        """
        if not self.otf_graph:
            return Graph.of(data["edge_index"], data["cell_offsets"], data["cell"], data["batch"])
        batch = with_positions(data, data["pos"].detach())
        if "inverse_cell" not in batch:
            batch.inverse_cell = inverse_cells(batch, batch.pbc)
        edges, offsets = radius_edges(batch, self, batch.pbc, widen)
        return Graph.of(edges, offsets, batch.cell, batch.batch)

    def encode(self, numbers: Tensor, geometry: Geometry) -> Tensor:
        """Embeddings h [n, width] of atoms with these numbers [n]."""
        known = self.descriptors[numbers].to(geometry.lengths)
        scalars = self.element(numbers) + self.describe(known)
        vectors = scalars.new_zeros(*scalars.shape, 3)
        found = [scalars]
        for layer, moves in zip(self.interactions, [*self.moves, None], strict=True):
            scalars, vectors = layer(scalars, vectors, geometry)
            found.append(scalars)
            if moves is not None:
                geometry = self.measure.moved(geometry, moves(scalars, geometry))
        joined: Tensor = self.join(torch.cat(found, dim=1))
        return joined

    def velocity(self, embedding: Tensor, geometry: Geometry) -> Tensor:
        """u(0) [n, 3], Angstrom per unit of pseudotime: edges' directions, weighted by a perceptron of
        their radial features and of the embeddings [n, width] at their ends.
        """
        graph = geometry.graph
        ends = [embedding[graph.target], embedding[graph.source], geometry.radial]
        push = self.push(torch.cat(ends, dim=1)) * geometry.fade[:, None] * geometry.units
        still: Tensor = push.new_zeros(len(embedding), 3)
        return still.index_add(0, graph.target, push)

    # ---- as a potential ----------------------------------------------------------------------

    def forward(self, data: AtomicData) -> dict[str, Any]:
        """``node_embedding`` [n, width], and the ``geometry`` that they are of.

        Positions are marked as what forces are the derivative by, where they are not yet.
        """
        if not data["pos"].requires_grad:
            data["pos"] = data["pos"].detach().requires_grad_()
        with torch.enable_grad():
            geometry = self.measure(self.graph(data), data["pos"])
            embedding = self.encode(data["atomic_numbers"], geometry)
        return {"node_embedding": embedding, "geometry": geometry}
