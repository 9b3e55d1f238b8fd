"""RelaxNet's network: an equivariant encoder and an energy, as a fairchem 2 backbone and head."""

from fairchem_gdeq.models.relaxnet.backbone import RelaxNetBackbone
from fairchem_gdeq.models.relaxnet.head import RelaxNetHead

__all__ = ["RelaxNetBackbone", "RelaxNetHead"]
