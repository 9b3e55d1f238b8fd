"""The relaxation operator G(X) = X + alpha F(X; c) of eq. 1, and its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from fairchem_gdeq.relax.segments import segment_mean
from fairchem_gdeq.relax.structures import Structures


class ForceField(Protocol):
    """A direct-force potential with its context c (graph, species, cell) frozen.

    This is all that a backbone has to provide.
    """

    @property
    def translation_invariant(self) -> bool:
        """Whether a rigid shift of all atoms leaves the forces as they are."""
        ...

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3] (eV/Angstrom) at positions [n, 3] (Angstrom), differentiable."""
        ...

    def select(self, structures: Tensor) -> ForceField:
        """The same field for the structures where the mask [s] holds."""
        ...

    def join(self, others: Sequence[Self]) -> ForceField:
        """The same field for its own structures followed by those of ``others``."""
        ...

    def refreeze(self, positions: Tensor) -> ForceField:
        """The field with its context built anew at positions [n, 3], and held."""
        ...

    def thaw(self) -> ForceField:
        """The field with its context built anew at every evaluation, as a plain relaxation does."""
        ...


@dataclass(frozen=True)
class Operator:
    """G(X) = X + alpha F(X; c) on the free atoms of a batch of structures (eq. 1).

    Where a structure has no fixed atom and the field is translation invariant, every rigid shift is
    a null vector of I - J_G, and direct forces, which need not sum to zero, would let the crystal
    drift. There ``pin`` is set, and the mean force is taken out of F. The projection is linear, so
    the VJP stays exact and I - J_G is invertible on the complement of the shifts.

    Attributes:
        field: forces at X for the frozen context.
        structures: batch index, free atoms, masses and cells.
        alpha: step, Angstrom per (eV/Angstrom); a tensor that requires grad makes it learnable.
        cap: longest displacement of one atom in one step (Angstrom), or None.
        pin: [s] bool, structures whose rigid shift is removed.
    """

    field: ForceField
    structures: Structures
    alpha: Tensor
    cap: float | None
    pin: Tensor

    @classmethod
    def build(
        cls,
        field: ForceField,
        structures: Structures,
        alpha: Tensor | float,
        cap: float | None = None,
        remove_drift: bool | None = None,
    ) -> Operator:
        """Operator with the default choice of ``pin``.

        ``remove_drift`` None pins the structures without fixed atoms of a translation-invariant
        field; True pins every structure without fixed atoms; False none.
        """
        has_fixed = torch.zeros(structures.count, dtype=torch.bool, device=structures.batch.device)
        has_fixed[structures.batch[~structures.free]] = True
        wanted = field.translation_invariant if remove_drift is None else remove_drift
        pin = ~has_fixed if wanted else torch.zeros_like(has_fixed)
        step = torch.as_tensor(alpha, dtype=structures.masses.dtype, device=pin.device)
        return cls(field, structures, step, cap, pin)

    def project(self, vectors: Tensor) -> Tensor:
        """Free-atom part of an atom vector field [n, 3], without its mean where pinned."""
        s = self.structures
        free = s.free[:, None]
        vectors = torch.where(free, vectors, torch.zeros_like(vectors))
        if not bool(self.pin.any()):
            return vectors
        mean = segment_mean(vectors, s.free.to(vectors.dtype), s.batch, s.count)
        return vectors - mean[s.batch] * (self.pin[s.batch, None] & free)

    def forces(self, positions: Tensor) -> Tensor:
        """F(X) [n, 3]: zero on fixed atoms, net force removed where pinned."""
        return self.project(self.field(positions))

    def step(self, forces: Tensor) -> Tensor:
        """The displacement [n, 3] (Angstrom) that the forces cause: alpha F, capped per atom."""
        move = self.alpha * forces
        if self.cap is None:
            return move
        length = move.norm(dim=-1, keepdim=True)
        return move * torch.where(length > self.cap, self.cap / length.clamp_min(1e-12), 1.0)

    def __call__(self, positions: Tensor) -> Tensor:
        """G(X) [n, 3]."""
        return positions + self.step(self.forces(positions))

    def vjp(self, positions: Tensor, vector: Tensor, accumulate: bool = False) -> Tensor:
        """lam^T dG/dX at X [n, 3] for lam [n, 3]; the one primitive of every gradient here.

        One forward and one backward of the potential. With ``accumulate`` also adds
        lam^T dG/dtheta to the ``.grad`` of whatever parameters the field (and alpha) hold.
        Components on fixed atoms are zero on return: those atoms are not unknowns.
        """
        with torch.enable_grad():
            x = positions.detach().requires_grad_(True)
            out = self(x)
            if accumulate:
                torch.autograd.backward(out, vector)
                grad = x.grad
            else:
                (grad,) = torch.autograd.grad(out, x, vector)
        assert grad is not None
        return torch.where(self.structures.free[:, None], grad, torch.zeros_like(grad))

    def select(self, structures: Tensor) -> Operator:
        """The operator on the structures where the mask [s] holds."""
        return replace(
            self,
            field=self.field.select(structures),
            structures=self.structures.select(structures),
            pin=self.pin[structures],
        )

    def join(self, others: Sequence[Operator]) -> Operator:
        """The operator on its own structures followed by those of ``others``.

        Raises:
            ValueError: another one has another alpha or cap: it would be another map.
        """
        for other in others:
            if other.cap != self.cap or not torch.equal(other.alpha, self.alpha):
                raise ValueError(
                    f"operators with alpha {self.alpha}, cap {self.cap} and alpha {other.alpha}, "
                    f"cap {other.cap} cannot be joined: they are different maps"
                )
        return replace(
            self,
            field=self.field.join([other.field for other in others]),
            structures=self.structures.join([other.structures for other in others]),
            pin=torch.cat([self.pin, *(other.pin for other in others)]),
        )

    def refreeze(self, positions: Tensor) -> Operator:
        """The operator with the field's context built anew at positions [n, 3], and held."""
        return replace(self, field=self.field.refreeze(positions))

    def thaw(self) -> Operator:
        """The operator with the field's context built anew at every evaluation."""
        return replace(self, field=self.field.thaw())
