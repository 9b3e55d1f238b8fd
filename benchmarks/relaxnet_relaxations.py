"""Table 5 of the RelaxNet paper on silicon: its ODE against an optimizer on a potential.

    python -m benchmarks.relaxnet_relaxations runs/si/relaxnet/results/best/inference_ckpt.pt [MORE ...]

For each checkpoint, held trajectories (``val_frames``, ``val_more_frames``) are evolved from their
starts; a checkpoint with implicit evolution is a potential as well, and is relaxed by L-BFGS until the
largest force is below 0.05 (C1) or 0.0751 eV/Angstrom (C2), in at most 500 steps. Errors are those at
the end: of the energy, of forces against those of the last frame, and Delta Q. ``--potential`` names
another potential, such as data/si/base/esen_all_frames.pt, that is relaxed in the same way; one without
an energy has no error of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from torch import Tensor

from fairchem_gdeq.data.is2rs import collate
from fairchem_gdeq.fairchem2.base import build_model, load_tasks, open_inference
from fairchem_gdeq.fairchem2.fields import HydraForceField, force_task
from fairchem_gdeq.frozen.cells import with_positions
from fairchem_gdeq.models.relaxnet import RelaxNetBackbone
from fairchem_gdeq.relax import LBFGS, Relaxer
from fairchem_gdeq.relax.loss import delta_q
from fairchem_gdeq.relaxnet.dynamics import Evolution
from fairchem_gdeq.relaxnet.frames import FramesDataset
from fairchem_gdeq.relaxnet.held import packed, reference_of
from fairchem_gdeq.relaxnet.task import RelaxNetIS2RS

FRAMES = ["data/si/val_frames", "data/si/val_more_frames"]
CRITERIA = {"C1": 0.05, "C2": 0.0751}  # eV/Angstrom
BUDGET = 1100  # atoms evaluated together


class End(NamedTuple):
    """Where a batch ends: energies [s] or None (eV), forces [n, 3] (eV/Angstrom), positions [n, 3]."""

    energies: Tensor | None
    forces: Tensor
    positions: Tensor


def evolved(model: HydraModel, is2rs: RelaxNetIS2RS, batch: AtomicData) -> End:
    """By the ODE."""
    path = is2rs.evolve(model, batch)
    return End(path.energies[-1], path.forces[-1], path.positions[-1])


def relaxed(model: HydraModel, tasks: list, fmax: float, batch: AtomicData) -> End:
    """By L-BFGS on the model's own forces, with 0.2 Angstrom as the longest step."""
    is2rs = RelaxNetIS2RS(relaxer=Relaxer(0, LBFGS(softest=None), fmax, 500), cap=0.2)
    field = HydraForceField.unfrozen(model, tasks, batch)
    _, positions = is2rs.relax_with(field, batch)
    out = model(with_positions(batch, positions))
    energy = out.get("energy", {}).get("energy")
    return End(energy, field(positions), positions)


def errors(data: FramesDataset, count: int, end_of) -> list[str]:
    """MAE of energies and forces at the end, mean Delta Q, and seconds."""
    is2rs, started = RelaxNetIS2RS(), time.perf_counter()
    wrong: list[Tensor] = []
    turned: list[Tensor] = []
    far: list[Tensor] = []
    for rows in packed((data[i] for i in range(count)), BUDGET):
        batch = collate(rows)
        true, s = reference_of(batch), is2rs.structures(batch)
        with torch.no_grad():
            end = end_of(batch)
        if end.energies is not None:
            wrong.append((end.energies - true.energies[-1]).abs())
        turned.append((end.forces - true.forces[-1]).abs()[s.free].flatten())
        pin = torch.ones(s.count, dtype=torch.long)
        far.append(delta_q(end.positions, true.positions[-1], s, pin))
    seconds = time.perf_counter() - started
    energy = f"{float(torch.cat(wrong).mean()):.3f}" if wrong else "-"
    force, distance = (float(torch.cat(each).mean()) for each in (turned, far))
    return [energy, f"{force:.4f}", f"{distance:.3f}", f"{seconds:.1f}"]


def lines_of(path: str, data: FramesDataset, count: int, dataset: str) -> Iterator[list[str]]:
    """The rows of a checkpoint."""
    model = build_model(path, open_inference(path)).eval()
    tasks = [force_task(load_tasks(path, dataset))]
    is_potential = True
    if isinstance(model.backbone, RelaxNetBackbone):
        is2rs = RelaxNetIS2RS(how=Evolution(frames=data.source.frames))
        is_potential = model.backbone.latent is None
        kind = "implicit" if is_potential else "explicit"
        yield [f"ODE, {kind}", *errors(data, count, lambda batch: evolved(model, is2rs, batch))]
    if is_potential:
        for name, fmax in CRITERIA.items():
            found = errors(data, count, lambda batch, fmax=fmax: relaxed(model, tasks, fmax, batch))
            yield [f"{type(model.backbone).__name__}, L-BFGS {name}", *found]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relaxnet_relaxations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", help="of RelaxNet: inference_ckpt.pt")
    parser.add_argument("--potential", action="append", default=[], help="another potential")
    parser.add_argument("--frames", type=int, default=5, help="T")
    parser.add_argument("--count", type=int, help="trajectories; default: all")
    parser.add_argument("--dataset", default="si", help="the name by which models know the data")
    given = parser.parse_args()
    data = FramesDataset({"src": FRAMES, "frames": given.frames, "skip_bad": True})
    count = min(given.count or len(data), len(data))
    print(f"{count} held trajectories\n")
    header = ["checkpoint", "model", "E MAE (eV)", "F MAE (eV/A)", "Delta Q", "seconds"]
    print(f"| {' | '.join(header)} |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for path in [*given.checkpoints, *given.potential]:
        name = "/".join(Path(path).parts[-4:])
        for cells in lines_of(path, data, count, given.dataset):
            print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
