"""IS2RS by RelaxNet: the prediction is where the ODE ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.task import labels_of
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax.causes import Cause
from fairchem_gdeq.relax.rigid import pinned_motions
from fairchem_gdeq.relax.segments import segment_max_norm, segment_sum, to_device
from fairchem_gdeq.relaxnet.dynamics import FARTHEST, Evolution, Path


@dataclass(frozen=True)
class RelaxNetIS2RS(IS2RS):
    """``RelaxationTask`` whose relaxations are paths of the ODE.

    Attributes:
        how: of the ODE.
        fmax: a structure counts as converged where its largest force at the end is below, eV/Angstrom.
    """

    how: Evolution = field(default_factory=Evolution)
    fmax: float = 0.05

    def evolve(self, model: HydraModel, batch: AtomicData) -> Path:
        """The path of each structure; differentiable where gradients are on."""
        return self.how(model, batch, self.structures(batch))

    def records_of(self, batch: AtomicData, path: Path) -> list[Record]:
        """Scores of where each structure ends (``ends``) against ``pos_relaxed``; without, of its way."""
        structures, lost = self.structures(batch), self.lost(batch, path)
        pin = pinned_motions(structures.known, shifts=True, turns=True)
        residual = segment_max_norm(path.forces[-1], structures.batch, structures.count)
        return measure(
            labels_of(batch),
            self.ends(batch, path),
            batch.pos_relaxed if "pos_relaxed" in batch else batch.pos,
            structures,
            to_device(torch.tensor(pin), lost.device),
            converged=(residual < self.fmax) & ~lost,
            cause=torch.where(lost, int(Cause.EXPLODED), int(Cause.NONE)),
            evaluations=torch.full_like(lost, path.evaluations, dtype=torch.long),
            residual=residual,
        )

    def ends(self, batch: AtomicData, path: Path) -> Tensor:
        """Positions [n, 3] of the last frame, Angstrom; of a structure that is lost, of its start."""
        return torch.where(self.lost(batch, path)[batch.batch, None], batch.pos, path.positions[-1])

    def lost(self, batch: AtomicData, path: Path) -> Tensor:
        """Structures [s] whose path is not finite, or left every bound."""
        structures = self.structures(batch)
        ways = (path.positions - batch.pos).norm(dim=-1).amax(0)
        bad = (~(ways < FARTHEST)).long() + (~torch.isfinite(path.forces)).any(-1).any(0).long()
        bad = segment_sum(bad, structures.batch, structures.count) > 0
        return bad | ~torch.isfinite(path.energies).all(0)

    @torch.no_grad()
    def relax(
        self, model: HydraModel, tasks: list[Task], batch: AtomicData, alpha: Tensor | None = None
    ) -> tuple[list[Record], Tensor]:
        """Records and ``ends``; a step alpha is not needed."""
        path = self.evolve(model, batch)
        return self.records_of(batch, path), self.ends(batch, path)
