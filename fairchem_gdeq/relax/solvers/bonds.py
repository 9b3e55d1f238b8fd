"""Covalent bonds in the first guess of the Hessian: much stiffer than all else in a structure.

A molecule on a metal is held softly, and its bonds are stiff. One number cannot stand for both, and a
few secant pairs do not tell them apart. So the guess is a multiple of P = I + kappa B^T B, where each
row of B is the stretch of a bond between two non-metals: a preconditioner in the sense of Packwood et
al. 2016, and of Mones, Ortner and Csanyi 2018 for molecules, with nothing to fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from ase.data import covalent_radii
from torch import Tensor

from fairchem_gdeq.relax.segments import combined, segment_products, to_device
from fairchem_gdeq.relax.structures import Structures

NON_METALS = (1, 6, 7, 8, 9, 15, 16, 17, 34, 35, 53)
REACH = 1.3  # a bond's longest length, in sums of covalent radii


@dataclass(frozen=True)
class Bond:
    """Between atoms i < j of a structure; ``apart`` is x_i - x_j [3], in double on the host, Angstrom."""

    structure: int
    i: int
    j: int
    apart: Tensor


def bonds(structures: Structures, positions: Tensor) -> Iterator[Bond]:
    """Every bond between two non-metals of which one may move; none where no elements are known.

    With periodic images, as ``Structures.shortest_distances``. Waits for the device.

    Args:
        structures: as of the operator.
        positions: [n, 3], Angstrom.
    """
    if structures.numbers is None:
        return
    s = structures.on("cpu").double()
    positions, numbers = positions.detach().cpu().double(), structures.numbers.cpu()
    radii = torch.as_tensor(covalent_radii)[numbers]
    able = torch.isin(numbers, torch.tensor(NON_METALS)) & positions.isfinite().all(-1)
    for structure, cell in enumerate(s.cell * s.pbc[:, :, None]):
        atoms = (able & (s.batch == structure)).nonzero().squeeze(-1)
        apart = positions[atoms, None] - positions[atoms]
        apart = apart - (apart @ torch.linalg.pinv(cell)).round() @ cell
        near = apart.norm(dim=-1) < REACH * (radii[atoms, None] + radii[atoms])
        moves = s.free[atoms, None] | s.free[atoms]
        for a, b in (near & moves).triu(1).nonzero().tolist():
            yield Bond(structure, int(atoms[a]), int(atoms[b]), apart[a, b])


def stretches(structures: Structures, positions: Tensor) -> Tensor:
    """B [b, n, 3]: how each bond's length follows the free atoms, for b bonds of the richest structure.

    The k-th bonds of all structures share a row, for products are taken in each structure by itself.
    """
    found, rows = list(bonds(structures, positions)), Counter[int]()
    most = max(Counter(bond.structure for bond in found).values(), default=0)
    out = positions.new_zeros(most, *positions.shape, device="cpu")
    for bond in found:
        row, along = rows[bond.structure], bond.apart / bond.apart.norm().clamp_min(1e-6)
        out[row, bond.i], out[row, bond.j] = along, -along
        rows[bond.structure] += 1
    out *= structures.free.cpu()[:, None]
    return to_device(out, positions.device)


def coupling(stretches: Tensor, stiffness: float, batch: Tensor, count: int) -> Tensor:
    """(1/kappa + B B^T)^-1 [s, b, b] in double, by which Woodbury's formula has the inverse of P."""
    gram = segment_products(stretches, stretches, batch, count)
    inverse: Tensor = torch.linalg.inv(gram + torch.eye(len(stretches)).to(gram) / stiffness)
    return inverse


def without_stretches(
    vectors: Tensor, stretches: Tensor, coupling: Tensor, batch: Tensor, count: int
) -> Tensor:
    """P^-1 of an atom vector field [n, 3]: itself where there is no bond."""
    along = segment_products(stretches, vectors[None], batch, count)
    weights = (coupling @ along).squeeze(-1).to(vectors.dtype)
    return vectors - combined(weights[batch], stretches)
