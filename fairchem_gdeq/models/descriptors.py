"""Element descriptors, from the ``mendeleev`` tables."""

from __future__ import annotations

import torch
from mendeleev.fetch import fetch_table
from torch import Tensor

PROPERTIES = (
    "group_id",
    "period",
    "en_pauling",
    "covalent_radius_pyykko",
    "vdw_radius",
    "atomic_radius",
    "electron_affinity",
    "dipole_polarizability",
    "atomic_weight",
)


def descriptor_table() -> Tensor:
    """[119, 9] descriptors by atomic number, standardised over the elements; unknown values are 0.

    Group, period and seven properties, as many as the ADAPT data set gives an atom.
    """
    table = fetch_table("elements").set_index("atomic_number")[list(PROPERTIES)].astype(float)
    scaled = ((table - table.mean()) / table.std()).fillna(0.0)
    out = torch.zeros(119, len(PROPERTIES), dtype=torch.float64)
    out[scaled.index.to_numpy(copy=True)] = torch.as_tensor(scaled.to_numpy(copy=True))
    return out
