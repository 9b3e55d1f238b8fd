"""The relaxation operator G(X) = X + alpha F(X; c) of eq. 1, and its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from fairchem_gdeq.relax.descent import Descent
from fairchem_gdeq.relax.rigid import FREE, SHIFT_AND_TURN, pinned_motions, without_turn
from fairchem_gdeq.relax.segments import segment_sum, to_device
from fairchem_gdeq.relax.structures import Structures


class ForceField(Protocol):
    """A potential with its context c (graph, species, cell) frozen.

    This is all that a backbone has to provide.
    """

    @property
    def translation_invariant(self) -> bool:
        """Whether a rigid shift of all atoms leaves the forces as they are."""
        ...

    @property
    def rotation_equivariant(self) -> bool:
        """Whether the forces of a structure that is not periodic turn with it."""
        ...

    def __call__(self, positions: Tensor) -> Tensor:
        """Forces [n, 3] (eV/Angstrom) at positions [n, 3] (Angstrom), differentiable."""
        ...

    def select(self, structures: Tensor) -> ForceField:
        """The same field for the structures where the mask [s] holds.

        The mask is on the host, where it was decided: a field on a GPU need not wait for it.
        """
        ...

    def join(self, others: Sequence[Self]) -> ForceField:
        """The same field for its own structures followed by those of ``others``."""
        ...

    def freeze(self, positions: Tensor) -> ForceField:
        """The field with its context built anew at positions [n, 3], and held."""
        ...

    def unfreeze(self) -> ForceField:
        """The field with its context built anew at every evaluation, as a plain relaxation does."""
        ...


@dataclass(frozen=True)
class Operator:
    """G(X) = X + alpha F(X; c) on the free atoms of a batch of structures (eq. 1).

    Rigid motions that the field does not feel are taken out of F as ``rigid`` says. The projection
    is linear in the forces, so the VJP stays exact, and I - J_G is invertible on the complement of
    those motions.

    Attributes:
        field: forces at X for the frozen context.
        structures: batch index, free atoms, masses and cells.
        alpha: step, Angstrom per (eV/Angstrom); a tensor that requires grad makes it learnable.
        cap: longest displacement of one atom in one step (Angstrom), or None.
        pinned: what is taken out of each structure, ``FREE``, ``SHIFT`` or ``SHIFT_AND_TURN``.
        pin: [s] int64, the same on the device.
        descent: how plain steps follow one another in a rollout; G is one of them by itself.
    """

    field: ForceField
    structures: Structures
    alpha: Tensor
    cap: float | None
    pinned: tuple[int, ...]
    pin: Tensor
    descent: Descent

    @classmethod
    def build(
        cls,
        field: ForceField,
        structures: Structures,
        alpha: Tensor | float,
        cap: float | None = None,
        remove_drift: bool | None = None,
        descent: Descent | None = None,
    ) -> Operator:
        """Operator with the default choice of ``pin``, and plain steps that are G by default.

        ``remove_drift`` None pins the structures without fixed atoms of a translation-invariant
        field, and their rotations where they are not periodic and the field turns with them; True
        pins the shift of every structure without fixed atoms; False nothing.
        """
        wanted = field.translation_invariant if remove_drift is None else remove_drift
        turns = remove_drift is None and wanted and field.rotation_equivariant
        pinned = pinned_motions(structures.known, wanted, turns)
        device = structures.batch.device
        step = torch.as_tensor(alpha, dtype=structures.masses.dtype)
        pin = to_device(torch.tensor(pinned, dtype=torch.long), device)
        return cls(
            field, structures, to_device(step, device), cap, pinned, pin, descent or Descent()
        )

    @cached_property
    def _share(self) -> Tensor:
        """What each atom [n, 1] contributes to the mean of its structure; 0 where not pinned."""
        s = self.structures
        weights = (s.free & (self.pin > FREE)[s.batch]).to(s.masses.dtype)
        total = segment_sum(weights, s.batch, s.count).clamp_min(1.0)
        return (weights / total[s.batch])[:, None]

    def project(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Free-atom part of vectors [n, 3] at positions [n, 3], less the pinned rigid motions."""
        s = self.structures
        vectors = torch.where(s.free[:, None], vectors, 0.0)
        if any(self.pinned):
            mean = segment_sum(vectors * self._share, s.batch, s.count)
            vectors = vectors - mean[s.batch]  # zero where not pinned; where pinned all are free
        if SHIFT_AND_TURN in self.pinned:
            vectors = without_turn(vectors, positions, s, self.pin)
        return vectors

    def forces(self, positions: Tensor) -> Tensor:
        """F(X) [n, 3]: zero on fixed atoms, net force (and torque) removed where pinned."""
        return self.project(self.field(positions), positions)

    def displacement(self, forces: Tensor, factor: Tensor | None = None) -> Tensor:
        """The displacement [n, 3] (Angstrom) that the forces cause: alpha F, capped per atom.

        ``factor`` [n, 1] multiplies alpha.
        """
        move = (self.alpha if factor is None else self.alpha * factor) * forces
        if self.cap is None:
            return move
        length = move.norm(dim=-1, keepdim=True)
        return move * torch.where(length > self.cap, self.cap / length.clamp_min(1e-12), 1.0)

    def __call__(self, positions: Tensor) -> Tensor:
        """G(X) [n, 3]."""
        return positions + self.displacement(self.forces(positions))

    def plain_step(
        self, positions: Tensor, forces: Tensor, velocity: Tensor | None, done: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Displacement [n, 3] (Angstrom) of a plain step of a rollout, and what the next one remembers.

        Args:
            positions, forces: [n, 3] X_k and F(X_k), Angstrom and eV/Angstrom.
            velocity: [n, 3] v_{k-1}; None for a descent without momentum.
            done: [s] k, plain steps that each structure has made before; on the host.
        """
        now = self.descent.velocity(forces, velocity)
        factor = self.descent.factor(positions, forces, done, self.structures)
        return self.displacement(now, factor), None if velocity is None else now

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
        return torch.where(self.structures.free[:, None], grad, 0.0)

    def select(self, structures: Tensor) -> Operator:
        """The operator on the structures where the mask [s] holds, best given on the host."""
        mask = structures.cpu()
        if bool(mask.all()):
            return self
        rows = mask.nonzero().squeeze(-1)
        return replace(
            self,
            field=self.field.select(mask),
            structures=self.structures.select(mask),
            pinned=tuple(self.pinned[k] for k in rows.tolist()),
            pin=self.pin[to_device(rows, self.pin.device)],
        )

    def join(self, others: Sequence[Operator]) -> Operator:
        """The operator on its own structures followed by those of ``others``.

        Raises:
            ValueError: another one has another alpha, cap or descent: it would be another map.
        """
        for other in others:
            # One tensor in all of them asks nothing of the device.
            same = other.alpha is self.alpha or torch.equal(other.alpha, self.alpha)
            if (other.cap, other.descent) != (self.cap, self.descent) or not same:
                raise ValueError(
                    f"operators with alpha {self.alpha}, cap {self.cap}, {self.descent} and alpha "
                    f"{other.alpha}, cap {other.cap}, {other.descent} cannot be joined: they are "
                    "different maps"
                )
        return replace(
            self,
            field=self.field.join([other.field for other in others]),
            structures=self.structures.join([other.structures for other in others]),
            pinned=tuple(each for part in (self, *others) for each in part.pinned),
            pin=torch.cat([self.pin, *(other.pin for other in others)]),
        )

    def freeze(self, positions: Tensor) -> Operator:
        """The operator with the field's context built anew at positions [n, 3], and held."""
        return replace(self, field=self.field.freeze(positions))

    def unfreeze(self) -> Operator:
        """The operator with the field's context built anew at every evaluation."""
        return replace(self, field=self.field.unfreeze())
