"""The place of ``Basin`` in version 0.1, for configs that name it, for one more release."""

from fairchem_gdeq.evaluation.basin import Basin

__all__ = ["Basin"]
