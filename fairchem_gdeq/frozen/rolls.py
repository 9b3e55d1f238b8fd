"""The roll of each edge's frame, for the models of either fairchem line that have such frames."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

TURNS = (0.8567, 0.7339, 0.6287, 0.5386, 0.4614)  # per edge index


@cache
def _turns(device: torch.device) -> Tensor:
    return torch.tensor(TURNS, dtype=torch.float64, device=device)


def rolls(edge_index: Tensor, offsets: Tensor, batch: Any) -> Tensor:
    """Angle [e] by which each edge's frame is turned about the edge, radian, double precision.

    fairchem draws it at random in every forward pass, because forces should not depend on it; with
    some activations they do, by about 1 %. Here it is a function of which edge it is, spread as
    evenly as random numbers: one map, whichever structures are evaluated together.

    Args:
        edge_index: [2, e] source and target.
        offsets: [e, 3] whole lattice vectors.
        batch: whose they are, with ``natoms`` [s] and ``batch`` [n].
    """
    first = (batch.natoms.cumsum(0) - batch.natoms)[batch.batch[edge_index[1]]]
    pairs = edge_index - first  # numbered within their structure
    own = torch.cat([pairs.T, offsets.round().long()], dim=1)
    return 2 * math.pi * ((own.double() @ _turns(own.device)) % 1)
