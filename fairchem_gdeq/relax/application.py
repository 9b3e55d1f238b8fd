"""One plain step of a rollout, as the backward sweep needs it again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairchem_gdeq.relax.kept import Kept
from fairchem_gdeq.relax.operator import Operator


@dataclass(frozen=True)
class Application:
    """One plain step: the structures that still moved, and where they were.

    Attributes:
        operator: G restricted to the moving structures.
        structures: indices of those structures in the whole batch, on the host.
        atoms: [m] indices of their atoms in the whole batch.
        positions: [m, 3] X_t of those atoms, Angstrom.
        before: [m, 3] v_{t-1}, eV/Angstrom; None without momentum.
        number: t.
        kept: the graph of this application, where there was memory for it.
    """

    operator: Operator
    structures: Tensor
    atoms: Tensor
    positions: Tensor
    before: Tensor | None
    number: int
    kept: Kept | None = None

    @property
    def done(self) -> Tensor:
        """[k] t for each of its structures."""
        return torch.full((len(self.structures),), self.number)

    def vjp(self, vector: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adjoints [m, 3] of X_t and v_{t-1} from those of X_{t+1} and v_t (None without momentum).

        Those of the parameters are added to their ``.grad``.
        """
        graph = self.kept or Kept.of(self.operator, self.positions, self.before, self.done)[0]
        return graph.vjp(vector, carried, self.operator)

    def restricted(self, operator: Operator, stays: Tensor) -> Application:
        """The step of the structures where the host mask [k] holds, without a graph; G of those."""
        keep = self.operator.structures.atoms_of(stays)
        return Application(
            operator,
            self.structures[stays],
            self.atoms[keep],
            self.positions[keep],
            None if self.before is None else self.before[keep],
            self.number,
        )

    def forget(self) -> None:
        """Free the graph."""
        if self.kept is not None:
            self.kept.release()
