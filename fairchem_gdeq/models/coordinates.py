"""What ADAPT and ResMLP share: atoms as points in space, padded to one tensor per batch."""

from __future__ import annotations

import math

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import BackboneInterface, HeadInterface
from fairchem.core.models.uma.escn_md import GradRegressConfig
from torch import Tensor, nn

from fairchem_gdeq.models.descriptors import PROPERTIES, descriptor_table
from fairchem_gdeq.models.inference import PlainInference


class Padding:
    """Flat atoms [n, ...] to and from [s, longest, ...], in the order within each structure."""

    def __init__(self, batch: Tensor, natoms: Tensor, length: int) -> None:
        first = natoms.cumsum(0) - natoms
        self.row = batch
        self.column = torch.arange(len(batch), device=batch.device) - first[batch]
        self.shape = (len(natoms), length)

    def mask(self) -> Tensor:
        """[s, length] bool, where there is an atom."""
        out = torch.zeros(self.shape, dtype=torch.bool, device=self.row.device)
        out[self.row, self.column] = True
        return out

    def pad(self, values: Tensor) -> Tensor:
        """[n, d] to [s, length, d], zero where there is no atom."""
        out = values.new_zeros(*self.shape, values.shape[-1])
        return out.index_put((self.row, self.column), values)

    def flat(self, padded: Tensor) -> Tensor:
        """[s, length, d] to [n, d]."""
        return padded[self.row, self.column]


class CoordinateBackbone(PlainInference, nn.Module, BackboneInterface):
    """A backbone on absolute coordinates: no graph, no cell, no translation invariance.

    Per atom: (x - origin) / scale, optionally sines and cosines of x, and 9 element descriptors.
    """

    translation_invariant = False
    neighbour_free = True
    width: int  # of the features that a backbone gives, for its head
    wave_numbers: Tensor
    descriptors: Tensor

    def __init__(
        self,
        origin: float = 0.0,
        scale: float = 1.0,
        wavelengths: list[float] | None = None,
    ) -> None:
        """
        Args:
            origin, scale: coordinates enter as (x - origin) / scale, Angstrom.
            wavelengths: Angstrom; for each, sin and cos of 2 pi x / wavelength are added, by which
                a network on absolute coordinates resolves 0.01 Angstrom in a box of 10. None is
                the papers' plain embedding.
        """
        super().__init__()
        self.origin, self.scale = origin, scale
        waves = torch.tensor(list(wavelengths or []), dtype=torch.float64)
        self.register_buffer("wave_numbers", 2 * math.pi / waves, persistent=True)
        self.register_buffer("descriptors", descriptor_table(), persistent=True)
        self.features = 3 + 6 * len(waves) + len(PROPERTIES)
        # What fairchem's predictor asks of every backbone.
        self.regress_config = GradRegressConfig(direct_forces=True, forces=True)
        self.wave_numbers = self.wave_numbers.to(torch.get_default_dtype())
        self.descriptors = self.descriptors.to(torch.get_default_dtype())

    def embed_atoms(self, data: AtomicData) -> Tensor:
        """Features of every atom [n, f]."""
        x = data["pos"]
        parts = [(x - self.origin) / self.scale, self.descriptors[data["atomic_numbers"]].to(x)]
        if len(self.wave_numbers):
            phase = (x[:, :, None] * self.wave_numbers.to(x)).flatten(1)
            parts += [phase.sin(), phase.cos()]
        return torch.cat(parts, dim=-1)


@registry.register_model("coordinate_force_projection")
class ForceProjection(nn.Module, HeadInterface):
    """Forces as a linear projection of the backbone's features [n, width] (eq. 7)."""

    def __init__(self, backbone: CoordinateBackbone) -> None:
        super().__init__()
        self.projection = nn.Linear(backbone.width, 3, bias=False)

    def forward(self, data: AtomicData, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{"forces": [n, 3]}``."""
        return {"forces": self.projection(emb["node_embedding"])}
