"""What the method must know of a batch of structures besides their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import (
    atoms_where,
    segment_count,
    segment_sum,
    to_device,
    transformed,
)

PAIRS = 2_000_000  # of atoms, whose distances are held at a time


@dataclass(frozen=True)
class Known:
    """What the host knows of each structure, so that no loop has to ask the device for it.

    Attributes:
        sizes: number of atoms.
        anchored: whether an atom is fixed.
        periodic: whether it is periodic in any direction.
    """

    sizes: tuple[int, ...]
    anchored: tuple[bool, ...]
    periodic: tuple[bool, ...]


@dataclass(frozen=True)
class Structures:
    """A flat batch of ``count`` structures with ``n`` atoms in all; positions travel separately.

    Attributes:
        batch: [n] int64, the structure of each atom, ascending.
        free: [n] bool, atoms that may move.
        masses: [n], amu.
        cell: [s, 3, 3], rows are lattice vectors, Angstrom.
        pbc: [s, 3] bool.
        numbers: [n] int64, atomic numbers; None where nobody asks for bonds.
        known: the same for the host; worked out once if not given.
    """

    batch: Tensor
    free: Tensor
    masses: Tensor
    cell: Tensor
    pbc: Tensor
    numbers: Tensor | None = None
    known: Known = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.known is not None:
            return
        sizes = segment_count(self.batch, self.count)
        fixed = segment_sum((~self.free).long(), self.batch, self.count)
        columns = torch.stack([sizes, fixed, self.pbc.any(dim=1).long()]).tolist()
        known = Known(tuple(columns[0]), *(tuple(map(bool, column)) for column in columns[1:]))
        object.__setattr__(self, "known", known)

    @property
    def count(self) -> int:
        """Number of structures s."""
        return self.cell.shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of atoms of each structure, on the host."""
        return self.known.sizes

    def on(self, device: torch.device | str) -> Structures:
        """The same on another device, without waiting for it."""
        there = torch.device(device)
        return replace(
            self,
            batch=to_device(self.batch, there),
            free=to_device(self.free, there),
            masses=to_device(self.masses, there),
            cell=to_device(self.cell, there),
            pbc=to_device(self.pbc, there),
            numbers=None if self.numbers is None else to_device(self.numbers, there),
        )

    def double(self) -> Structures:
        """The same with masses and cells in double precision."""
        return replace(self, masses=self.masses.double(), cell=self.cell.double())

    def atoms_of(self, structures: Tensor) -> Tensor:
        """Indices [m] of the atoms of the structures where the mask [s] holds.

        Nothing waits for the device where the mask is on the host.
        """
        return atoms_where(structures.cpu(), self.sizes, self.batch.device)

    def select(self, structures: Tensor) -> Structures:
        """The batch of the structures where the mask [s] holds, in the same order."""
        mask = structures.cpu()
        rows = mask.nonzero().squeeze(-1)
        atoms, chosen = self.atoms_of(mask), to_device(rows, self.batch.device)
        numbers = rows.tolist()
        known = Known(
            *(
                tuple(column[k] for k in numbers)
                for column in (self.sizes, self.known.anchored, self.known.periodic)
            )
        )
        sizes = torch.tensor(known.sizes, dtype=torch.long)
        return Structures(
            batch=to_device(torch.arange(len(rows)).repeat_interleave(sizes), self.batch.device),
            free=self.free[atoms],
            masses=self.masses[atoms],
            cell=self.cell[chosen],
            pbc=self.pbc[chosen],
            numbers=None if self.numbers is None else self.numbers[atoms],
            known=known,
        )

    def join(self, others: Sequence[Structures]) -> Structures:
        """The batch of these structures followed by those of ``others``, in order."""
        parts = [self, *others]
        first = [sum(p.count for p in parts[:k]) for k in range(len(parts))]
        numbers = [p.numbers for p in parts if p.numbers is not None]
        return Structures(
            batch=torch.cat([p.batch + k for p, k in zip(parts, first, strict=True)]),
            free=torch.cat([p.free for p in parts]),
            masses=torch.cat([p.masses for p in parts]),
            cell=torch.cat([p.cell for p in parts]),
            pbc=torch.cat([p.pbc for p in parts]),
            numbers=torch.cat(numbers) if len(numbers) == len(parts) else None,
            known=Known(
                sizes=tuple(size for p in parts for size in p.sizes),
                anchored=tuple(each for p in parts for each in p.known.anchored),
                periodic=tuple(each for p in parts for each in p.known.periodic),
            ),
        )

    @cached_property
    def _lattice(self) -> tuple[Tensor, Tensor]:
        """Lattice vectors [s, 3, 3], zero where not periodic, and their pseudo-inverse, double.

        The pseudo-inverse projects on what the periodic directions span.
        """
        cell = self.cell.double() * self.pbc[:, :, None]
        return cell, torch.linalg.pinv(cell)

    def periodic_shift(self, displacement: Tensor) -> Tensor:
        """Rigid shift [s, 3] about which the displacements [n, 3] gather, modulo the lattice.

        The circular mean, weighted by the free atoms' masses, of each periodic coordinate: it moves
        with the displacements however far they are shifted, which a mean of minimum images, cut at
        half a cell, does not.
        """
        with torch.no_grad():
            cell, inverse = (each.to(displacement.dtype) for each in self._lattice)
            turns = 2 * math.pi * transformed(displacement, inverse[self.batch])
            weights = (self.masses * self.free)[:, None]
            sine = segment_sum(weights * turns.sin(), self.batch, self.count)
            cosine = segment_sum(weights * turns.cos(), self.batch, self.count)
            return transformed(torch.atan2(sine, cosine) / (2 * math.pi), cell)

    def minimum_image(self, displacement: Tensor) -> Tensor:
        """The shortest periodic image of each displacement [n, 3].

        The lattice shift is a constant for autograd: the result moves as the argument does. The
        27 cells about the rounded one are searched, which is exact for any reduced cell.
        """
        if not any(self.known.periodic):
            return displacement
        with torch.no_grad():
            wrap = self.pbc.to(displacement.dtype)
            cell, inverse = (each.to(displacement.dtype) for each in self._lattice)
            base = -transformed(displacement, inverse[self.batch]).round()
            around = torch.cartesian_prod(*(torch.arange(-1, 2, device=wrap.device),) * 3)
            shifts = base[:, None, :] + around.to(wrap.dtype)[None] * wrap[self.batch][:, None, :]
            images = transformed(shifts, cell[self.batch][:, None])
            best = (displacement[:, None, :] + images).norm(dim=-1).argmin(dim=1)
            shift = images[torch.arange(len(best), device=best.device), best]
        return displacement + shift

    def shortest_distances(self, positions: Tensor) -> Tensor:
        """Between two atoms of each structure [s], with periodic images, Angstrom; infinite for one atom.

        Exact below half of the least height of a cell. An atom and its own images are no pair.
        """
        cells, inverses = (each.to(positions.dtype) for each in self._lattice)
        found = []
        for own, cell, inverse in zip(positions.split(self.sizes), cells, inverses, strict=True):
            shortest = positions.new_full((), torch.inf)
            for first in range(0, len(own), rows := max(1, PAIRS // max(1, len(own)))):
                apart = own[first : first + rows, None] - own
                apart = apart - (apart @ inverse).round() @ cell
                squares = apart.square().sum(-1)
                squares.diagonal(first).fill_(torch.inf)
                shortest = torch.minimum(shortest, squares.min().sqrt())
            found.append(shortest)
        return torch.stack(found)
