"""Radial parts of the edge features: spherical Bessel functions and Gaussians (RelaxNet, eq. 6a)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn

KINDS = ("bessel", "gaussian")


def spherical_bessel(x: Tensor, degree: int) -> Tensor:
    """j_0(x) ... j_degree(x) in a last dimension, for x above 0, by the upward recursion.

    The recursion loses (2l - 1)!! / x^l of its digits below x = l; the least x here is that of two atoms
    on top of each other over the cutoff, times pi.
    """
    found = [x.sin() / x]
    if degree:
        found.append((found[0] - x.cos()) / x)
    for order in range(1, degree):
        found.append((2 * order + 1) / x * found[order] - found[order - 1])
    return torch.stack(found, dim=-1)


def bessel_roots(degree: int, count: int) -> Tensor:
    """The first ``count`` positive zeros of j_0 ... j_degree: [degree + 1, count], double precision."""
    # Those of j_(l+1) lie between neighbouring ones of j_l, so each row needs one more than the next.
    row = np.pi * np.arange(1, count + degree + 1)
    rows = [row[:count]]
    for order in range(1, degree + 1):

        def function(x: float, order: int = order) -> float:
            return float(spherical_jn(order, x))

        row = np.array([brentq(function, low, high) for low, high in pairwise(row)])
        rows.append(row[:count])
    return torch.tensor(np.array(rows))


def envelope(lengths: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """The polynomial that goes from 1 at 0 to 0 at the cutoff, with two derivatives; 0 beyond it.

    Gasteiger et al., Directional message passing (2020), eq. 8.
    """
    x = (lengths / cutoff).clamp(max=1.0)
    p = power
    value = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )
    return torch.where(lengths < cutoff, value, torch.zeros_like(value))


class RadialBasis(nn.Module):
    """c^(l)(r) of eq. 6: for each degree l, ``count`` spherical Bessel functions that vanish at the
    cutoff, and ``count`` Gaussians, which do not depend on l.

    Attributes:
        width: numbers that come out of each distance.
    """

    roots: Tensor
    centres: Tensor

    def __init__(self, kinds: Sequence[str], count: int, cutoff: float, degree: int) -> None:
        """
        Args:
            kinds: which of ``KINDS``; the paper has both.
            count: functions of each.
            cutoff: Angstrom.
            degree: the highest l.

        Raises:
            ValueError: another kind, or none.
        """
        super().__init__()
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(f"radial={list(kinds)}: expected one or both of {', '.join(KINDS)}")
        self.kinds, self.cutoff, self.degree = tuple(kinds), cutoff, degree
        default = torch.get_default_dtype()
        self.register_buffer("roots", bessel_roots(degree, count).to(default))
        self.register_buffer("centres", torch.linspace(0, cutoff, count, dtype=default))
        self.sharpness = (count / cutoff) ** 2 / 2  # neighbouring ones meet at 0.6 of their height
        self.width = count * (("bessel" in kinds) * (degree + 1) + ("gaussian" in kinds))

    def forward(self, lengths: Tensor) -> Tensor:
        """Of distances [e], Angstrom: [e, width]."""
        parts = []
        if "bessel" in self.kinds:
            scaled = lengths / self.cutoff
            for order, roots in enumerate(self.roots):
                parts.append(spherical_bessel(scaled[:, None] * roots, order)[..., order] * roots)
        if "gaussian" in self.kinds:
            parts.append((-self.sharpness * (lengths[:, None] - self.centres) ** 2).exp())
        return torch.cat(parts, dim=-1)
