"""ADAPT: a Transformer encoder on atoms as points in space (BPTT paper, appendix A.1)."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor, nn
from torch.nn import functional

from fairchem_gdeq.models.coordinates import CoordinateBackbone, Padding


class Encoder(nn.Module):
    """One block of eq. 6. No dropout: a relaxation needs one fixed map."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.norm_in = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multi-head self-attention of [s, length, width] among real atoms, mask [s, length]."""
        s, length, width = x.shape
        qkv = self.query_key_value(x).view(s, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(s, length, width))
        return out

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[s, length, width] to the same."""
        h1 = self.norm_attention(x + self.attention(x, mask))
        h2 = self.ffn(self.norm_in(h1))
        out: Tensor = self.norm_out(h2 + h1)
        return out


@registry.register_model("adapt_backbone")
class ADAPTBackbone(CoordinateBackbone):
    """Embedding MLP, then encoder blocks (eq. 8 and 9); the force head is ``ForceProjection``."""

    def __init__(
        self,
        width: int = 256,
        layers: int = 8,
        heads: int = 8,
        hidden: int = 1024,
        origin: float = 0.0,
        scale: float = 1.0,
        wavelengths: list[float] | None = None,
    ) -> None:
        """
        Args:
            width, layers, heads, hidden: of the Transformer.
            origin, scale, wavelengths: see ``CoordinateBackbone``.

        Raises:
            ValueError: heads do not divide the width.
        """
        super().__init__(origin, scale, wavelengths)
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.width = width
        self.embedding = nn.Sequential(
            nn.Linear(self.features, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(Encoder(width, heads, hidden) for _ in range(layers))

    def forward(self, data: AtomicData) -> dict[str, Tensor]:
        """``{"node_embedding": [n, width]}``."""
        natoms = data["natoms"]
        padding = Padding(data["batch"], natoms, int(natoms.max()))
        mask = padding.mask()
        x = padding.pad(self.embedding(self.embed_atoms(data)))
        for block in self.blocks:
            x = block(x, mask)
        return {"node_embedding": padding.flat(x)}
