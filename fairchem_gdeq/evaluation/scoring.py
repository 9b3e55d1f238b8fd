"""Scoring and predicting a split with a model and its base, whatever fairchem they are of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ase
import torch
from ase.calculators.calculator import Calculator
from torch import Tensor, nn
from tqdm import tqdm

from fairchem_gdeq.batching.bulk import Bulk
from fairchem_gdeq.evaluation.fingerprint import code, fingerprint
from fairchem_gdeq.evaluation.overlays import Ends, Overlay, overlay
from fairchem_gdeq.evaluation.predictions import (
    Journal,
    each_row_once,
    keep,
    kept_in,
    relax_all,
    start_of,
    write,
)
from fairchem_gdeq.evaluation.records import Label, Record, each_once
from fairchem_gdeq.evaluation.reference import AskedReference, ReferenceFile
from fairchem_gdeq.evaluation.rows import (
    Reference,
    Score,
    baseline_rows,
    file_row,
    unrelaxed_row,
    with_reference,
)
from fairchem_gdeq.evaluation.task import Batch, RelaxationTask, labels_of, to_ase
from fairchem_gdeq.relax import ForceField
from fairchem_gdeq.training.ranks import gather, rank, ranks, synchronize

UNRELAXED, BASE, TUNED = "unrelaxed X_0", "base", "tuned"
BASE_RELAXED = "base_relaxed"  # a folder beside those of the runs


@dataclass(frozen=True)
class Split:
    """The structures of a split that this rank relaxes.

    Attributes:
        name: result files carry it.
        rows: gives them anew, as batches of one structure.
        count: how many they are.
        budget: atoms evaluated together.
        device: where.
    """

    name: str
    rows: Callable[[], Iterator[Batch]]
    count: int
    budget: int
    device: torch.device


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to score: its row in the table, and how structures are relaxed with it."""

    name: str
    model: nn.Module
    is2rs: RelaxationTask


class Kept(NamedTuple):
    """Where structures are kept as the base has relaxed them, for other runs of a folder.

    Attributes:
        folder: of them.
        base: fingerprint of the base from before it was evaluated: some models remember their last batch.
    """

    folder: Path
    base: str


class Compared(NamedTuple):
    """A split as the rows of the table have it.

    Attributes:
        records: of every row, by its title.
        overlays: the structures of some rows of the data set at their starts, where the models relax
            them and at their targets. All ranks call it together, and get the same.
    """

    records: dict[str, list[Record]]
    overlays: Callable[[Collection[int]], list[Overlay]]


@dataclass(frozen=True)
class Scoring:
    """A split, and how a model relaxes it.

    Attributes:
        split: the structures.
        field_of: a model on a batch as an unfrozen force field.
        tasks_of: what makes forces of a model's output, such as normalizers.
        kept: where what the base has relaxed is kept; None: nowhere.
    """

    split: Split
    field_of: Callable[[nn.Module, Batch], ForceField]
    tasks_of: Callable[[nn.Module], object]
    kept: Kept | None = None

    def bulk(self, chosen: EvaluatedModel) -> Bulk:
        """What relaxes rows with a model, which goes to the device for it."""
        field_of = partial(self.field_of, chosen.model.to(self.split.device).eval())
        return Bulk(chosen.is2rs, field_of, self.split.budget, self.split.device)

    def relaxed(
        self,
        chosen: EvaluatedModel,
        reference: AskedReference | None = None,
        ends: Ends | None = None,
    ) -> list[Record]:
        """Records of all ranks as a model relaxes them, with what a reference says if one is given.

        ``ends`` takes the relaxed positions of this rank's structures. The base relaxes a split once:
        later runs take what is in ``kept``.
        """
        file = self._file_of(chosen) if reference is None else None
        if file is not None and (images := kept_in(file)) is not None:
            if ends is not None:
                ends |= {atoms.info["row"]: torch.as_tensor(atoms.positions) for atoms in images}
            return self.records_of(chosen, images)
        images, bulk = [], self.bulk(chosen)
        found: list[Record] = []
        with self._bar(chosen.name) as bar:
            for relaxed in bulk.relax(self.split.rows()):
                record = relaxed.record
                if reference is not None:
                    target = to_ase(relaxed.row, relaxed.row.pos_relaxed)
                    (record,) = reference.judge([record], [relaxed.to_ase()], target)
                found.append(record)
                if ends is not None:
                    ends[record.row] = relaxed.outcome.positions
                if file is not None:
                    images.append(relaxed.to_ase())
                bulk.show(bar)
        if bulk.failed:
            logging.warning(
                f"{chosen.name} on {self.split.name}: memory did not suffice for {bulk.failed} structures"
            )
        elif file is not None:
            keep(file, images)
        return each_once(gather(found))

    def _file_of(self, chosen: EvaluatedModel) -> Path | None:
        """Where this rank's structures are kept as the base relaxes them; None: nowhere.

        Its name changes with all that decides where a structure ends, on one machine to the last digit:
        the model, how it relaxes, which structures together, on what device, and by which code.
        """
        if self.kept is None or chosen.name != BASE:
            return None
        split = self.split
        starts = [start_of(row) for row in split.rows()]
        parts = (self.kept.base, chosen.is2rs, self.tasks_of(chosen.model), starts, split.budget)
        digits = fingerprint(*parts, split.device.type, code())
        return self.kept.folder / f"{split.name}.{digits}.traj"

    def scored(self, row: Score, chosen: EvaluatedModel, title: str) -> list[Record]:
        """Records of all ranks in a row of the table that has a model and no flight."""
        model = chosen.model.to(self.split.device).eval()
        found: list[Record] = []
        with self._bar(title) as bar:
            for batch in self.split.rows():
                batch = batch.to(self.split.device)
                found += row(self.field_of(model, batch), batch)[0]
                bar.update()
        return each_once(gather(found))

    def compare(
        self,
        base: EvaluatedModel,
        tuned: EvaluatedModel | None,
        baselines: Sequence[str] = (),
        reference: Reference | None = None,
    ) -> Compared:
        """Score the split with every row of the table.

        Raises:
            ValueError: an unknown baseline, or a reference file that cannot tell rows of one name
                apart.
        """
        file = reference if isinstance(reference, ReferenceFile) else None
        asked = AskedReference(reference) if isinstance(reference, Calculator) else None
        rows = {UNRELAXED: unrelaxed_row(base.is2rs)} | baseline_rows(baselines, base.is2rs)
        if file:
            rows |= dict([file_row(base.is2rs, file)])
        if asked:
            rows = {title: with_reference(row, asked) for title, row in rows.items()}
        records = {UNRELAXED: self.scored(rows.pop(UNRELAXED), base, UNRELAXED)}
        if file:
            file.require_own_frames(Label(r.sid, r.row) for r in records[UNRELAXED])
        ends: dict[str, Ends] = {}
        for chosen in (base, tuned):
            if chosen is not None:
                ends[chosen.name] = {}
                records[chosen.name] = self.relaxed(chosen, asked, ends[chosen.name])
        records |= {title: self.scored(row, base, title) for title, row in rows.items()}
        return Compared(records, partial(self._overlays, base, ends))

    def _overlays(
        self, base: EvaluatedModel, ends: Mapping[str, Ends], rows: Collection[int]
    ) -> list[Overlay]:
        """``Compared.overlays``; ``ends`` are this rank's, by the models' names."""
        found: dict[int, Overlay] = {}
        mine = set(rows).intersection(*ends.values())
        try:
            for batch in self.split.rows():
                (label,) = labels_of(batch)
                if label.row in mine:
                    operator = base.is2rs.operator_of(self.field_of(base.model, batch), batch)
                    places = {UNRELAXED: batch.pos} | {k: e[label.row] for k, e in ends.items()}
                    found[label.row] = overlay(batch, places, operator)
                if len(found) == len(mine):
                    break
        except Exception as error:  # the other ranks wait for what this one has
            logging.warning(f"structures of {self.split.name} cannot be shown: {error}")
        every: list[Overlay] = gather(list(found.values()))
        unique = {each.label.row: each for each in every}
        return [unique[row] for row in rows if row in unique]

    def predict(self, chosen: EvaluatedModel, folder: Path) -> list[ase.Atoms]:
        """Write ``<split>.extxyz`` and ``<split>.npz``; an interrupted prediction goes on.

        Returns:
            The relaxed structures of all ranks, each row once.
        """
        bulk, split = self.bulk(chosen), self.split.name
        made_by = fingerprint(chosen.model, chosen.is2rs, self.tasks_of(chosen.model))
        journal = Journal(folder, split, made_by, rank())
        with self._bar("predict") as bar:
            images = relax_all(journal, self.split.rows(), bulk, bar)
        images = each_row_once(gather(images))
        if rank() == 0:
            write(folder, split, images)
            missed = sum(not a.info["converged"] for a in images)
            failed = sum(a.info["failed"] for a in images)
            print(
                f"{len(images)} structures ({missed} not converged"
                + (f", {failed} of them for want of memory" if failed else "")
                + f") in {folder}"
            )
        synchronize()
        journal.remove()
        return images

    def records_of(self, chosen: EvaluatedModel, images: Iterable[ase.Atoms]) -> list[Record]:
        """Records of all ranks for structures, of this rank at least, as that model has relaxed them.

        As in ``measure``, one that diverged is no nearer than it began.
        """
        known = {atoms.info["row"]: atoms for atoms in images}

        def score(field: ForceField, row: Batch) -> tuple[list[Record], Tensor]:
            atoms = known[int(row.row)]
            ends = torch.as_tensor(atoms.positions).to(row.pos)
            (record,) = chosen.is2rs.score_with(field, row, ends)
            how = {
                key: atoms.info[key] for key in ("converged", "diverged", "cause", "evaluations")
            }
            if how["diverged"]:
                (began,) = chosen.is2rs.score_with(field, row, row.pos)
                record = max(record, began, key=lambda each: each.delta_q)
            return [replace(record, residual=atoms.info["max_force"], **how)], ends

        return self.scored(score, chosen, chosen.name)

    def _bar(self, title: str) -> tqdm:
        """Of the first process: the others, whose share is as large, would write over it."""
        text = f"{title} on {self.split.name}"
        if ranks() > 1:
            text += f", 1 of {ranks()} processes"
        return tqdm(total=self.split.count, desc=text, leave=False, disable=rank() > 0)
