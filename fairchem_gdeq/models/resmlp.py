"""ResMLP: a residual perceptron on the flattened structure (BPTT paper, appendix A.2)."""

from __future__ import annotations

import torch
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor, nn

from fairchem_gdeq.models.coordinates import CoordinateBackbone, Padding


class Residual(nn.Module):
    """One line pair of eq. 10: t = sigma(W x + b), h = LN(P t + t)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, width)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[s, inputs] to [s, width]."""
        t = torch.nn.functional.gelu(self.inner(x))
        out: Tensor = self.norm(self.mix(t) + t)
        return out


@registry.register_model("resmlp_backbone")
class ResMLPBackbone(CoordinateBackbone):
    """Six residual layers on all atoms at once; order of atoms and their number matter.

    The last layer gives ``width_out`` numbers per atom, which ``ForceProjection`` turns into forces;
    with the projection it is the paper's W_6 factored per atom.
    """

    def __init__(
        self,
        max_atoms: int = 220,
        hidden: int = 4096,
        layers: int = 6,
        origin: float = 0.0,
        scale: float = 1.0,
        wavelengths: list[float] | None = None,
    ) -> None:
        """
        Args:
            max_atoms: the largest structure; smaller ones are padded with zeros.
            hidden, layers: of the perceptron.
            origin, scale, wavelengths: see ``CoordinateBackbone``.
        """
        super().__init__(origin, scale, wavelengths)
        self.max_atoms = max_atoms
        self.width = 3
        sizes = [max_atoms * self.features] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(Residual(size, hidden) for size in sizes)
        self.out = nn.Linear(hidden, 3 * max_atoms, bias=False)

    def forward(self, data: AtomicData) -> dict[str, Tensor]:
        """``{"node_embedding": [n, 3]}``.

        Raises:
            ValueError: a structure has more than ``max_atoms`` atoms.
        """
        natoms = data["natoms"]
        if int(natoms.max()) > self.max_atoms:
            which = int(natoms.argmax())
            raise ValueError(
                f"structure {data['sid'][which] if 'sid' in data else which} has "
                f"{int(natoms.max())} atoms, but this ResMLP was built for at most "
                f"max_atoms={self.max_atoms}: build a larger one or leave the structure out"
            )
        padding = Padding(data["batch"], natoms, self.max_atoms)
        x = padding.pad(self.embed_atoms(data)).flatten(1)
        for layer in self.layers:
            x = layer(x)
        return {"node_embedding": padding.flat(self.out(x).view(-1, self.max_atoms, 3))}
