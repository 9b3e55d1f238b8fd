"""Relaxations by the model, and the frames that are chosen of their paths."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.geometry import find_mic
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from fairchem_gdeq.api.job import Code, End, Job
from fairchem_gdeq.api.potential import Potential, load_potential
from fairchem_gdeq.api.structures import relaxed_copy
from fairchem_gdeq.data.rows import free_atoms
from fairchem_gdeq.explore.records import Folder, Record
from fairchem_gdeq.explore.starts import Start
from fairchem_gdeq.explore.workers import over
from fairchem_gdeq.relax import LBFGS, Relaxer
from fairchem_gdeq.relax.packs import MAX_FORCE

NOT_RELAXED = (Code.OUT_OF_MEMORY, Code.BAD_INPUT, Code.FAILED)
Visit = tuple[NDArray[np.float64], NDArray[np.float64]]  # positions and the model's forces, [n, 3]


@dataclass(frozen=True)
class Settings:
    """How structures are relaxed and frames chosen.

    Attributes:
        model: an inference checkpoint of fairchem 2.
        dataset: the name by which it knows such data; None where it knows one only.
        relaxer: how it relaxes, from the start.
        alpha: of the relaxer's plain steps, Angstrom per (eV/Angstrom).
        frames: of each path: its start, its end, and others evenly between them.
        tolerance: a frame of which no free atom is so far from where it is in another one is left
            out, Angstrom.
        right_below: leave out relaxations that end with a Delta Q from their target below this,
            amu^0.5 Angstrom; None: there are no targets.
        device: None: a GPU if there is one.
        max_atoms: relaxed together; None: by the device.
        trust_files: as ``load_potential``.
    """

    model: str
    dataset: str | None = None
    relaxer: Relaxer = field(default_factory=lambda: Relaxer(0, LBFGS(), 0.02, 60))
    alpha: float = 0.05
    frames: int = 6
    tolerance: float = 0.02
    right_below: float | None = None
    device: str | None = None
    max_atoms: int | None = None
    trust_files: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or self.tolerance < 0:
            raise ValueError(
                f"{self.frames} frames, tolerance {self.tolerance}: expected at least 1, and 0"
            )

    def facts(self) -> dict[str, object]:
        """What frames depend on, as plain values; the model by its weights, as in folders of before."""
        potential = opened(self)
        return {
            "model": _weights(potential.model),
            "dataset": potential.dataset,
            "relaxer": repr(self.relaxer),
            "alpha": self.alpha,
            "descent": repr(potential.task.descent),
            "frames": self.frames,
            "tolerance": self.tolerance,
            "right_below": self.right_below,
        }


def _weights(model: nn.Module) -> str:
    """Twelve digits that change with the weights; not, as ``fingerprint``, with fairchem's version."""
    digest = hashlib.sha256(b"()")
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@cache
def opened(settings: Settings) -> Potential:
    """The model, once in each process.

    Raises:
        FileNotFoundError, ValueError: as ``load_potential``.
    """
    found = load_potential(
        settings.model, settings.dataset, settings.device, trust_files=settings.trust_files
    )
    return replace(found, task=replace(found.task, alpha=settings.alpha, relaxer=settings.relaxer))


class Walker:
    """Relaxes starts that have no record, and makes their records; picklable."""

    def __init__(self, settings: Settings, folder: Folder) -> None:
        self.settings, self.folder = settings, folder

    def __call__(self, starts: Sequence[Start], bar: tqdm | None = None) -> Iterator[Record]:
        """The records as they come, without frames; they have been written.

        Raises:
            OSError: one cannot be written.
        """
        potential, paths = opened(self.settings), dict[int, list[Visit]]()

        def see(row: Any, number: int, positions: Tensor, forces: Tensor) -> None:
            # From the beginning again where a pack failed and its structures go on one by one.
            path = paths.setdefault(int(row.row), [])
            del path[number:]
            path.append((positions.double().numpy().copy(), forces.double().numpy().copy()))

        job = Job(
            [start.atoms for start in starts],
            potential,
            potential.task,
            self.settings.max_atoms or potential.atoms_together,
            [start.target for start in starts] if self.settings.right_below is not None else None,
            see,
        )
        for index, end in job.run(tqdm(disable=True) if bar is None else bar):
            record = self.record(starts[index], index, end, paths.pop(index, []))
            record.save(self.folder.file(record.name))
            yield record

    def record(self, start: Start, index: int, end: End, path: list[Visit]) -> Record:
        """Of a relaxation: its chosen frames, none where it was not relaxed or ended right."""
        near = self.settings.right_below
        right = end.code is Code.CONVERGED and near is not None and end.delta_q < near
        path = [] if right or end.code in NOT_RELAXED else sound(path)
        steps = evenly(len(path), self.settings.frames)
        kept = distinct(start.atoms, [path[k][0] for k in steps], self.settings.tolerance)
        shape = (len(kept), len(start.atoms), 3)
        chosen = [path[steps[k]] for k in kept]
        places = [relaxed_copy(start.atoms, x).positions for x, _ in chosen]
        failed = end.code in NOT_RELAXED
        reason = end.reason.removeprefix(f"structure {index}: ") if failed else ""
        if end.code is Code.OUT_OF_MEMORY:
            reason = "memory does not suffice for it alone"
        return Record(
            name=start.name,
            atoms=start.atoms,
            code=end.code.value,
            reason=reason,
            right=right,
            repeated=len(steps) - len(kept),
            last=max(len(path) - 1, 0),
            steps=np.array([steps[k] for k in kept], dtype=np.int64),
            positions=np.reshape(places, shape),
            predicted=np.reshape([f for _, f in chosen], shape),
            energies=np.full(shape[0], np.nan),
            forces=np.full(shape, np.nan),
            failures=np.full(shape[0], "", dtype=np.str_),
        )


def sound(path: list[Visit]) -> list[Visit]:
    """The path as far as its positions and forces are of this world."""
    for k, (positions, forces) in enumerate(path):
        if not (np.isfinite(positions).all() and np.abs(forces).max(initial=0.0) < MAX_FORCE):
            return path[:k]
    return path


def evenly(length: int, count: int) -> list[int]:
    """At most ``count`` of ``length`` indices, the first, the last, and others evenly between."""
    wanted = np.linspace(0, length - 1, min(count, length)).round()
    return [int(k) for k in np.unique(wanted)]


def distinct(atoms: Atoms, places: Sequence[NDArray[np.float64]], tolerance: float) -> list[int]:
    """Indices, in order, of positions [n, 3] of which none is within ``tolerance`` of another.

    The first counts before the last, and both before those between.
    """
    kept: list[int] = []
    free = free_atoms(atoms)
    for k in dict.fromkeys(
        [*range(len(places))[:1], *range(len(places))[-1:], *range(len(places))]
    ):
        moves = ((places[k] - places[j])[free] for j in kept)
        far = (find_mic(move, atoms.cell, atoms.pbc)[1].max(initial=0.0) for move in moves)
        if all(distance >= tolerance for distance in far):
            kept.append(k)
    return sorted(kept)


def walk(
    starts: Sequence[Start],
    settings: Settings,
    folder: Folder,
    workers: int = 1,
    retry: bool = False,
) -> int:
    """Relax, in flight, the starts that have no record in the folder; their number.

    Args:
        starts: all of them.
        settings: the folder's, if it has been begun.
        folder: which keeps the records.
        workers: one-threaded processes, for a model on the CPU.
        retry: also those that could not be relaxed before.

    Raises:
        FileExistsError: the folder was made by other settings, or from another start of that name.
    """
    folder.claim("settings", settings.facts())
    todo = [start for start in starts if not _known(start, folder, retry)]
    potential, walker = opened(settings), Walker(settings, folder)
    unable = 0
    with tqdm(total=len(todo), desc="relax", unit="structure") as bar:
        if workers == 1 or potential.device.type != "cpu":
            for record in walker(todo, bar):
                unable += _say(record)
            return len(todo)
        # Small enough that all are busy to the end, and that little is lost by an interruption.
        size = max(1, min(16, len(todo) // (4 * workers)))
        blocks = [todo[k : k + size] for k in range(0, len(todo), size)]
        converged = frames = done = 0
        for record in over(walker, blocks, workers):
            unable += _say(record)
            done, frames = done + 1, frames + len(record.steps)
            converged += record.code == Code.CONVERGED.value
            numbers = {"converged": f"{converged / done:.0%}", "frames": frames}
            bar.set_postfix(numbers | ({"failed": unable} if unable else {}), refresh=False)
            bar.update()
    return len(todo)


def _known(start: Start, folder: Folder, retry: bool) -> bool:
    """Whether the start's relaxation is done."""
    file = folder.file(start.name)
    if not file.exists():
        return False
    record = Record.load(file)
    same = record.atoms == start.atoms and np.array_equal(record.free, free_atoms(start.atoms))
    if not same:
        raise FileExistsError(
            f"{file}: {start.name} began at another structure. Give the starts of before, other "
            "names (sid), or another folder"
        )
    return not (retry and record.code in [code.value for code in NOT_RELAXED])


def _say(record: Record) -> bool:
    """Whether the structure could not be relaxed, which the log says."""
    if record.reason:
        logging.warning(f"{record.name} is not relaxed: {record.reason}")
    return bool(record.reason)
