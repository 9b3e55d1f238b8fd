"""Scoring and predicting a split by the ODE, for the same table as every other model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import cast

import ase
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.data.names import write_extxyz
from fairchem_gdeq.evaluation.overlays import Ends
from fairchem_gdeq.evaluation.predictions import each_row_once, write
from fairchem_gdeq.evaluation.records import Record, each_once
from fairchem_gdeq.evaluation.reference import AskedReference
from fairchem_gdeq.evaluation.scoring import EvaluatedModel, Scoring
from fairchem_gdeq.evaluation.task import to_ase
from fairchem_gdeq.relaxnet.dynamics import Path
from fairchem_gdeq.relaxnet.held import packed
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS
from fairchem_gdeq.training.in_use import whole_file
from fairchem_gdeq.training.ranks import gather, rank, synchronize


@dataclass(frozen=True)
class Evolved:
    """A pack of structures with their paths.

    Attributes:
        batch: the starts.
        path: of the ODE.
        records: of where they end.
        ends: [n, 3], Angstrom.
    """

    batch: AtomicData
    path: Path
    records: list[Record]
    ends: Tensor

    def images(self) -> list[ase.Atoms]:
        """The structures at their ends, with how they ended in ``info``."""
        out = to_ase(self.batch, self.ends)
        for atoms, record in zip(out, self.records, strict=True):
            atoms.info = {
                "sid": record.sid,
                "row": record.row,
                "converged": record.converged,
                "diverged": record.diverged,
                "failed": False,
                "evaluations": record.evaluations,
                "max_force": record.residual,
            }
        return out

    def paths(self) -> Iterator[ase.Atoms]:
        """Every frame of every structure that is not lost, with predicted energy and forces."""
        sizes = self.batch.natoms.tolist()
        frames = [
            (to_ase(self.batch, place), energy.tolist(), forces.cpu().split(sizes))
            for place, energy, forces in zip(
                self.path.positions, self.path.energies, self.path.forces, strict=True
            )
        ]
        for number, record in enumerate(self.records):
            for step, (images, energies, forces) in enumerate(frames):
                if record.diverged:
                    continue
                atoms = images[number]
                atoms.info = {"sid": record.sid, "row": record.row, "frame": step}
                atoms.calc = SinglePointCalculator(
                    atoms, energy=energies[number], forces=forces[number].numpy()
                )
                yield atoms


class ODEScoring(Scoring):
    """``Scoring`` whose models do not relax structures but evolve them."""

    def evolved(self, chosen: EvaluatedModel, title: str) -> Iterator[Evolved]:
        """The split of this rank, pack by pack."""
        is2rs = chosen.is2rs
        assert isinstance(is2rs, RelaxNetIS2RS)
        model = cast(HydraModel, chosen.model.to(self.split.device).eval())
        with self._bar(title) as bar:
            for rows in packed(self.split.rows(), self.split.budget):
                batch = collate([row.get_example(0) for row in rows]).to(self.split.device)
                with torch.no_grad():
                    path = is2rs.evolve(model, batch)
                yield Evolved(batch, path, is2rs.records_of(batch, path), is2rs.ends(batch, path))
                bar.update(len(rows))

    def relaxed(
        self,
        chosen: EvaluatedModel,
        reference: AskedReference | None = None,
        ends: Ends | None = None,
    ) -> list[Record]:
        """As ``Scoring.relaxed``."""
        found: list[Record] = []
        for each in self.evolved(chosen, chosen.name):
            records = each.records
            if reference is not None:
                targets = to_ase(each.batch, each.batch.pos_relaxed)
                records = reference.judge(records, each.images(), targets)
            if ends is not None:
                places = each.ends.split(each.batch.natoms.tolist())
                ends |= {r.row: place for r, place in zip(records, places, strict=True)}
            found += records
        return each_once(gather(found))

    def predict(self, chosen: EvaluatedModel, folder: FilePath) -> list[ase.Atoms]:
        """As ``Scoring.predict``, and ``<split>_paths.extxyz`` with all frames, energies and forces.

        A path takes seconds, so an interrupted prediction begins anew.
        """
        images: list[ase.Atoms] = []
        paths: list[ase.Atoms] = []
        for each in self.evolved(chosen, "predict"):
            images += each.images()
            paths += each.paths()
        images, paths = each_row_once(gather(images)), gather(paths)
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, self.split.name, images)
            frames = {(atoms.info["row"], atoms.info["frame"]): atoms for atoms in paths}
            with whole_file(folder / f"{self.split.name}_paths.extxyz") as part:
                write_extxyz(part, [frames[key] for key in sorted(frames)])
            lost = sum(atoms.info["diverged"] for atoms in images)
            print(f"{len(images)} structures ({lost} lost, left at their starts) in {folder}")
        synchronize()
        return images
