"""What the method must know of a batch of structures besides their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Structures:
    """A flat batch of ``count`` structures with ``n`` atoms in all; positions travel separately.

    Attributes:
        batch: [n] int64, the structure of each atom, ascending.
        free: [n] bool, atoms that may move.
        masses: [n], amu.
        cell: [s, 3, 3], rows are lattice vectors, Angstrom.
        pbc: [s, 3] bool.
    """

    batch: Tensor
    free: Tensor
    masses: Tensor
    cell: Tensor
    pbc: Tensor

    @property
    def count(self) -> int:
        """Number of structures s."""
        return self.cell.shape[0]

    def atoms_of(self, structures: Tensor) -> Tensor:
        """Indices [m] of the atoms of the structures where the mask [s] holds."""
        return structures[self.batch].nonzero().squeeze(-1)

    def select(self, structures: Tensor) -> Structures:
        """The batch of the structures where the mask [s] holds, in the same order."""
        atoms = self.atoms_of(structures)
        renumbered = structures.long().cumsum(0) - 1
        return Structures(
            batch=renumbered[self.batch[atoms]],
            free=self.free[atoms],
            masses=self.masses[atoms],
            cell=self.cell[structures],
            pbc=self.pbc[structures],
        )

    def minimum_image(self, displacement: Tensor) -> Tensor:
        """The shortest periodic image of each displacement [n, 3].

        The lattice shift is a constant for autograd: the result moves as the argument does. The
        27 cells about the rounded one are searched, which is exact for any reduced cell.
        """
        with torch.no_grad():
            if not bool(self.pbc.any()):
                return displacement
            # Only periodic directions count: the pseudo-inverse projects on what they span.
            wrap = self.pbc.to(displacement.dtype)
            cell = self.cell.to(displacement.dtype) * wrap[:, :, None]
            inverse = torch.linalg.pinv(cell)[self.batch]
            base = -torch.einsum("ni,nij->nj", displacement, inverse).round()
            around = torch.cartesian_prod(*(torch.arange(-1, 2, device=wrap.device),) * 3)
            shifts = base[:, None, :] + around.to(wrap.dtype)[None] * wrap[self.batch][:, None, :]
            images = torch.einsum("nki,nij->nkj", shifts, cell[self.batch])
            best = (displacement[:, None, :] + images).norm(dim=-1).argmin(dim=1)
            shift = images[torch.arange(len(best), device=best.device), best]
        return displacement + shift
