"""What the method must know of a batch of structures besides their positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import segment_sum


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

    def join(self, others: Sequence[Structures]) -> Structures:
        """The batch of these structures followed by those of ``others``, in order."""
        parts = [self, *others]
        first = itertools.accumulate((p.count for p in parts[:-1]), initial=0)
        return Structures(
            batch=torch.cat([p.batch + k for p, k in zip(parts, first, strict=True)]),
            free=torch.cat([p.free for p in parts]),
            masses=torch.cat([p.masses for p in parts]),
            cell=torch.cat([p.cell for p in parts]),
            pbc=torch.cat([p.pbc for p in parts]),
        )

    def _lattice(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Lattice vectors [s, 3, 3], zero where not periodic, and their pseudo-inverse.

        The pseudo-inverse projects on what the periodic directions span.
        """
        cell = self.cell.to(dtype) * self.pbc.to(dtype)[:, :, None]
        return cell, torch.linalg.pinv(cell)

    def periodic_shift(self, displacement: Tensor) -> Tensor:
        """Rigid shift [s, 3] about which the displacements [n, 3] gather, modulo the lattice.

        The circular mean, weighted by the free atoms' masses, of each periodic coordinate: it moves
        with the displacements however far they are shifted, which a mean of minimum images, cut at
        half a cell, does not.
        """
        with torch.no_grad():
            cell, inverse = self._lattice(displacement.dtype)
            turns = 2 * math.pi * torch.einsum("ni,nij->nj", displacement, inverse[self.batch])
            weights = (self.masses * self.free)[:, None]
            sine = segment_sum(weights * turns.sin(), self.batch, self.count)
            cosine = segment_sum(weights * turns.cos(), self.batch, self.count)
            return torch.einsum("si,sij->sj", torch.atan2(sine, cosine) / (2 * math.pi), cell)

    def minimum_image(self, displacement: Tensor) -> Tensor:
        """The shortest periodic image of each displacement [n, 3].

        The lattice shift is a constant for autograd: the result moves as the argument does. The
        27 cells about the rounded one are searched, which is exact for any reduced cell.
        """
        with torch.no_grad():
            if not bool(self.pbc.any()):
                return displacement
            wrap = self.pbc.to(displacement.dtype)
            cell, inverse = self._lattice(displacement.dtype)
            base = -torch.einsum("ni,nij->nj", displacement, inverse[self.batch]).round()
            around = torch.cartesian_prod(*(torch.arange(-1, 2, device=wrap.device),) * 3)
            shifts = base[:, None, :] + around.to(wrap.dtype)[None] * wrap[self.batch][:, None, :]
            images = torch.einsum("nki,nij->nkj", shifts, cell[self.batch])
            best = (displacement[:, None, :] + images).norm(dim=-1).argmin(dim=1)
            shift = images[torch.arange(len(best), device=best.device), best]
        return displacement + shift
