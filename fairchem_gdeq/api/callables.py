"""Forces of another library as a ``ForceField``: a function of positions, differentiable by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import ase
import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData
from torch import Tensor

from fairchem_gdeq.api.structures import as_list, to_row
from fairchem_gdeq.fairchem2.task import IS2RS

Forces = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CallableField:
    """A ``ForceField`` of one function for each structure.

    Nothing is frozen but what the functions hold: what a structure is made of, and its cell, is
    theirs to know. Neighbours that a function finds anew at every call stay exact as long as its
    forces are smooth where neighbours come and go.

    Attributes:
        parts: function and number of atoms of each structure; None: all atoms that there are, for
            one structure alone.
        translation_invariant, rotation_equivariant: as ``ForceField``.
    """

    parts: tuple[tuple[Forces, int | None], ...]
    translation_invariant: bool = False
    rotation_equivariant: bool = False

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3], eV/Angstrom, at positions [n, 3], Angstrom.

        Raises:
            ValueError: other numbers of atoms than the structures have, or forces of another shape.
        """
        alone = len(self.parts) == 1
        sizes = [len(positions)] if alone else [int(size or 0) for _, size in self.parts]
        if sum(sizes) != len(positions) or self.parts[0][1] not in (None, sizes[0]):
            known = [size for _, size in self.parts]
            raise ValueError(f"positions of {len(positions)} atoms for structures of {known} atoms")
        found, wanted = [], torch.is_grad_enabled()
        for (function, _), x in zip(self.parts, positions.split(sizes), strict=True):
            with torch.enable_grad():  # forces may be the gradient of an energy
                out = function(x)
            if out.shape != x.shape:
                raise ValueError(f"forces have shape {tuple(out.shape)}, expected {tuple(x.shape)}")
            found.append((out if wanted else out.detach()).to(x.dtype))
        return torch.cat(found)

    def select(self, structures: Tensor) -> CallableField:
        """The structures where the mask [s] holds."""
        keep = structures.tolist()
        return replace(self, parts=tuple(p for p, k in zip(self.parts, keep, strict=True) if k))

    def join(self, others: Sequence[CallableField]) -> CallableField:
        """Its own structures and, after them, those of ``others``.

        Raises:
            ValueError: a number of atoms is not known.
        """
        parts = tuple(part for each in (self, *others) for part in each.parts)
        if len(parts) > 1 and any(size is None for _, size in parts):
            raise ValueError(
                "structures of a function can only be evaluated together where each one's number of "
                "atoms is known: from_callable(forces, atoms=NUMBER)"
            )
        return replace(self, parts=parts)

    def freeze(self, positions: Tensor) -> CallableField:
        """There is nothing to freeze."""
        return self

    def unfreeze(self) -> CallableField:
        """There is nothing to build anew."""
        return self


def from_callable(
    forces: Forces,
    atoms: int | None = None,
    *,
    translation_invariant: bool = False,
    rotation_equivariant: bool = False,
) -> CallableField:
    """Forces of another library, for ``relax`` and for the package ``fairchem_gdeq.relax``.

    Args:
        forces: of one structure: positions [n, 3] in Angstrom to forces [n, 3] in eV/Angstrom, on the
            same device. PyTorch must be able to differentiate it to train by; to relax is no
            derivative needed. It may differentiate an energy itself, and compute in another dtype.
        atoms: n, needed where several structures are put into one batch with ``join``.
        translation_invariant: a shift of all atoms leaves the forces as they are; a net force is
            then taken out of structures without fixed atoms.
        rotation_equivariant: forces turn with a structure that is not periodic; net torques are
            then taken out too.
    """
    return CallableField(((forces, atoms),), translation_invariant, rotation_equivariant)


@dataclass(frozen=True)
class CallablePotential:
    """What ``relax`` reads of a ``Potential``, for a field of one function; on the CPU, in double."""

    source: CallableField
    task: IS2RS = field(default_factory=IS2RS)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    atoms_together: int = 1000

    def row(self, atoms: ase.Atoms, index: int, target: ase.Atoms | None = None) -> AtomicData:
        """A structure on the host."""
        return to_row(atoms, index, "callable", torch.float64, target)

    def field(self, batch: AtomicData) -> CallableField:
        """The function for one structure.

        Raises:
            ValueError: the field is of several structures, or of one with another number of atoms.
        """
        number = len(batch.pos)
        if len(self.source.parts) != 1 or self.source.parts[0][1] not in (None, number):
            sizes = [size for _, size in self.source.parts]
            raise ValueError(f"{number} atoms, and the field is of structures with {sizes} atoms")
        return replace(self.source, parts=((self.source.parts[0][0], number),))

    def forces(self, structures: list[ase.Atoms], max_atoms: int | None = None) -> list[np.ndarray]:
        """Forces [n, 3] of each structure, eV/Angstrom."""
        found = []
        for atoms in as_list(structures):
            with torch.no_grad():
                found.append(self.source(torch.as_tensor(atoms.positions)).numpy())
        return found
