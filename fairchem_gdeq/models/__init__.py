"""The papers' coordinate models, as fairchem 2 backbones with a direct force head."""

from fairchem_gdeq.models.adapt import ADAPTBackbone
from fairchem_gdeq.models.coordinates import ForceProjection
from fairchem_gdeq.models.resmlp import ResMLPBackbone

__all__ = ["ADAPTBackbone", "ForceProjection", "ResMLPBackbone"]
