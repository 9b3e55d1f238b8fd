"""What is said of models that cannot be differentiated exactly, whatever fairchem they are of."""

from __future__ import annotations

from torch import nn


def unknown_neighbours(backbone: nn.Module, advice: str) -> ValueError:
    """The error for a backbone about whose neighbours nothing is known."""
    return ValueError(
        f"{type(backbone).__name__}: how its neighbours are chosen is not known here, so its graph "
        f"cannot be frozen and its Jacobian would jump where they change. {advice}"
    )
