"""The IS2RS task: how initial structures are relaxed and scored, whatever fairchem the model is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import ase
import torch
from ase.constraints import FixAtoms
from torch import Tensor

from fairchem_gdeq.batching.streams import Request
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.measures import measure
from fairchem_gdeq.evaluation.records import Label, Record
from fairchem_gdeq.relax import Descent, ForceField, Operator, Relaxer, Structures, solve
from fairchem_gdeq.relax.guidance import rollout
from fairchem_gdeq.relax.segments import to_device


class Batch(Protocol):
    """A flat batch of structures: fairchem 2's ``AtomicData`` or fairchem 1's PyG ``Batch``.

    Attributes:
        pos: [n, 3], Angstrom.
        batch: [n] int64, the structure of each atom.
        fixed: [n], nonzero for atoms that do not move.
        atomic_numbers, tags: [n].
        natoms: [s].
        cell: [s, 3, 3], Angstrom.
        pbc: [s, 3] bool.
        sid: names of the structures.
        row: [s] int64, their places in the data set.
        pos_relaxed: [n, 3], Angstrom; not in a data set without targets.
        mass: [n], amu; where it is not there, ``masses`` are.
    """

    pos: Tensor
    batch: Tensor
    fixed: Tensor
    atomic_numbers: Tensor
    tags: Tensor
    natoms: Tensor
    cell: Tensor
    pbc: Tensor
    sid: Sequence[object]
    row: Tensor
    pos_relaxed: Tensor
    mass: Tensor
    masses: Tensor

    def __contains__(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Tensor: ...

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""
        ...


def labels_of(batch: Batch) -> list[Label]:
    """Names and rows of a batch's structures.

    Raises:
        ValueError: the batch comes from a data set that does not say which rows it gives.
    """
    if "row" not in batch:
        raise ValueError(
            f"structures {', '.join(map(str, batch.sid[:3]))}, ... come without their row numbers "
            "(`row`, int64, one a structure): open them as format is2rs, is2rs_lmdb or "
            "is2rs_trajectories, which give them"
        )
    return [Label(str(sid), row) for sid, row in zip(batch.sid, batch.row.tolist(), strict=True)]


@dataclass(frozen=True)
class RelaxationTask:
    """Initial structure to relaxed structure, of a force field on a batch.

    Predicts the relaxed positions of every free atom from ``batch.pos``; the target is
    ``batch.pos_relaxed``, the loss Delta Q (eq. 2), the metrics those of ``metrics``.

    Attributes:
        alpha: step of the operator, Angstrom per (eV/Angstrom).
        cap: longest displacement of an atom in one plain step, Angstrom, or None.
        remove_drift: None for the default of ``Operator.build``.
        descent: how plain steps follow one another, in training and before the solver alike.
        relaxer: how structures are relaxed for scoring.
        basin: when one counts as captured.
    """

    alpha: float = 0.05
    cap: float | None = 0.1
    remove_drift: bool | None = None
    descent: Descent = field(default_factory=Descent)
    relaxer: Relaxer = field(default_factory=Relaxer)
    basin: Basin = field(default_factory=Basin)

    @property
    def of_displacements(self) -> Self:
        """The same for a model that predicts where atoms go in one shot (``signals.Direct``)."""
        relaxer = replace(self.relaxer, horizon=1, one_shot=True)
        return replace(self, cap=None, descent=Descent(), relaxer=relaxer)

    def structures(self, batch: Batch) -> Structures:
        """The method's view of a batch."""
        return Structures(
            batch=batch.batch,
            free=batch.fixed == 0,
            masses=batch.mass if "mass" in batch else batch.masses,
            cell=batch.cell,
            pbc=batch.pbc,
            numbers=batch.atomic_numbers.long(),
        )

    def operator_of(self, field: ForceField, batch: Batch, alpha: Tensor | None = None) -> Operator:
        """G of a field on its batch."""
        return self._operator(field, self.structures(batch), self.alpha if alpha is None else alpha)

    def request_of(self, key: int, field: ForceField, row: Batch, alpha: Tensor) -> Request:
        """A batch of one structure as it enters a ``Stream``, without waiting for the device.

        Args:
            key: of the request.
            field: on the device, unfrozen.
            row: on the host.
            alpha: the step on the device, one tensor for all requests.
        """
        operator = self._operator(field, self.structures(row).on(alpha.device), alpha)
        return Request(key, operator, to_device(row.pos, alpha.device))

    def _operator(self, field: ForceField, s: Structures, alpha: Tensor | float) -> Operator:
        return Operator.build(field, s, alpha, self.cap, self.remove_drift, self.descent)

    @torch.no_grad()
    def relax_with(
        self, field: ForceField, batch: Batch, alpha: Tensor | None = None
    ) -> tuple[list[Record], Tensor]:
        """Relax a batch from X_0 and score it.

        Args:
            field: unfrozen, to be relaxed as a user would: with a fresh graph at every step.

        Returns:
            Records (distances are NaN-free; without ``pos_relaxed`` in the batch they are measured
            from X_0) and positions [n, 3], Angstrom.
        """
        operator = self.operator_of(field, batch, alpha)
        path = rollout(operator, batch.pos, self.relaxer.horizon, self.relaxer.fmax)
        how, positions, evaluations = self.relaxer, path.positions, path.evaluations
        converged, cause = torch.zeros_like(path.diverged), path.cause
        residual = torch.full_like(cause, torch.inf, dtype=positions.dtype)
        if not how.one_shot:
            end = solve(operator, positions, how.solver, how.fmax, how.max_steps)
            positions, residual = end.positions, end.residual
            converged = end.converged & ~path.diverged
            cause = torch.where(path.diverged, cause, end.cause)
            evaluations = end.evaluations + evaluations
        records = measure(
            labels_of(batch),
            positions,
            batch.pos_relaxed if "pos_relaxed" in batch else batch.pos,
            operator.structures,
            operator.pin,
            converged=converged,
            cause=cause,
            evaluations=evaluations,
            residual=residual,
            start=batch.pos,
        )
        return records, positions

    def score_with(self, field: ForceField, batch: Batch, positions: Tensor) -> list[Record]:
        """Records of given positions [n, 3], Angstrom, such as X_0: nothing is relaxed.

        Raises:
            ValueError: the batch has no ``pos_relaxed``.
        """
        if "pos_relaxed" not in batch:
            raise ValueError("this split has no targets to score against: use --mode predict")
        operator = self.operator_of(field, batch)
        count, device = operator.structures.count, batch.pos.device
        none = torch.zeros(count, dtype=torch.bool, device=device)
        return measure(
            labels_of(batch),
            positions,
            batch.pos_relaxed,
            operator.structures,
            operator.pin,
            converged=none,
            cause=none.to(torch.int8),
            evaluations=none.long(),
            residual=torch.full((count,), torch.nan, device=device),
        )


def to_ase(batch: Batch, positions: Tensor) -> list[ase.Atoms]:
    """The structures of a batch at positions [n, 3], Angstrom, with tags and fixed atoms."""
    sizes = batch.natoms.tolist()
    columns = (positions.detach(), batch.atomic_numbers, batch.tags, batch.fixed)
    parts = zip(*(column.cpu().split(sizes) for column in columns), strict=True)
    return [
        ase.Atoms(
            positions=x.numpy(),
            numbers=numbers.numpy(),
            tags=tags.numpy(),
            cell=cell.numpy(),
            pbc=pbc.tolist(),
            constraint=FixAtoms(mask=fixed.bool().tolist()),
        )
        for (x, numbers, tags, fixed), cell, pbc in zip(
            parts, batch.cell.cpu(), batch.pbc.cpu(), strict=True
        )
    ]
