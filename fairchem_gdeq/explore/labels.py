"""Forces of the reference at the chosen frames, by an ASE calculator."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tqdm import tqdm

from fairchem_gdeq.evaluation.rows import open_reference
from fairchem_gdeq.explore.records import Folder, Label, Record
from fairchem_gdeq.explore.workers import over


@dataclass(frozen=True)
class Reference:
    """An ASE calculator by its import path and options, as ``_target_`` of a config names it.

    Attributes:
        target: such as ``sevenn.calculator.SevenNetCalculator``.
        options: ``key=value`` each, values in YAML: ``model=7net-0``, ``pbc=[true,true,false]``.
    """

    target: str
    options: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """What labels depend on."""
        return {"calculator": self.target, "options": list(self.options)}

    def open(self) -> Calculator:
        """Make it.

        Raises:
            ValueError: no such class, or options that it does not take.
        """
        words = [word for word in self.options if "=" not in word]
        if words:
            raise ValueError(f"calculator option {words[0]!r}: expected key=value")
        try:
            options = OmegaConf.from_dotlist(list(self.options))
            made = instantiate({"_target_": self.target, **options}, _convert_="all")
            found: Any = open_reference(made)  # no file, which instantiate does not make
        except Exception as error:  # of the import, or whatever its __init__ raises
            raise ValueError(f"calculator {self.target}: {' '.join(str(error).split())}") from error
        return found  # type: ignore[no-any-return]


@cache
def opened(reference: Reference) -> Calculator:
    """The calculator, once in each process."""
    return reference.open()


@dataclass(frozen=True)
class Labelled:
    """One call of the reference: the frame, why it failed (else empty), the model's mean error there.

    ``error`` is the mean absolute error of a free atom's force component, eV/Angstrom.
    """

    sid: str
    failure: str
    error: float


class Labeller:
    """Labels the frames of a record that have no labels yet; picklable."""

    def __init__(self, reference: Reference, folder: Folder, retry: bool) -> None:
        self.reference, self.folder, self.retry = reference, folder, retry

    def missing(self, record: Record) -> list[int]:
        """Frames to label."""
        failed = np.array([bool(failure) for failure in record.failures], dtype=bool)
        todo = ~record.labelled if self.retry else ~record.labelled & ~failed
        return np.flatnonzero(todo).tolist()

    def __call__(self, file: Path) -> Iterator[Labelled]:
        """Calls as they are made; each has been written to the record's file."""
        record = Record.load(file)
        for k in self.missing(record):
            try:
                found = self._calculate(record.frame(k))
            except Exception as error:  # whatever the calculator raises
                found = Label(failure=f"{type(error).__name__}: {error}")
                opened.cache_clear()  # who knows in which state it is
            record = record.with_labels({k: found})
            record.save(file)
            wrong = np.abs(found.forces - record.predicted[k])[record.free]
            yield Labelled(record.sid(k), found.failure, float(wrong.mean()))

    def _calculate(self, frame: Atoms) -> Label:
        sid = frame.info["sid"]
        calculator = opened(self.reference)
        if not any(word.startswith("directory=") for word in self.reference.options):
            # One for each frame, for programs that write files; others leave it alone.
            calculator.directory = str(self.folder.work / "calculations" / quote(sid, safe=" "))
        frame.calc = calculator
        forces = np.asarray(frame.get_forces(apply_constraint=False), dtype=float)
        if forces.shape != frame.positions.shape or not np.isfinite(forces).all():
            raise ValueError(f"forces are not finite, or have shape {forces.shape}")
        try:
            energy = float(frame.get_potential_energy())
        except PropertyNotImplementedError:
            energy = float("nan")
        return Label(forces.copy(), energy)


def label(
    names: Iterable[str],
    reference: Reference,
    folder: Folder,
    workers: int = 1,
    retry: bool = False,
) -> int:
    """Label the frames that have no labels yet; the number of calls.

    Args:
        names: of the structures.
        reference: the folder's, if there are labels in it.
        folder: which keeps the records.
        workers: processes.
        retry: also frames on which the reference failed before.

    Raises:
        FileExistsError: there are labels of another reference in the folder.
        ValueError: as ``Reference.open``.
    """
    folder.claim("reference", reference.facts())
    labeller = Labeller(reference, folder, retry)
    files = [folder.file(name) for name in names]
    missing = [len(labeller.missing(Record.load(file))) for file in files]
    todo: Sequence[Path] = [file for file, number in zip(files, missing, strict=True) if number]
    errors: list[float] = []
    calls = 0
    with tqdm(total=sum(missing), desc="label", unit="frame") as bar:
        for done in over(labeller, todo, workers):
            calls += 1
            if done.failure:
                logging.warning(f"{done.sid} has no label: {done.failure}")
            else:
                errors.append(done.error)
            numbers = {"model_error": f"{np.mean(errors):.3f}"} if errors else {}
            failed = {"failed": calls - len(errors)} if calls > len(errors) else {}
            bar.set_postfix(numbers | failed, refresh=False)
            bar.update()
    return calls
