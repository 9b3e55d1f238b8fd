"""A reference at relaxed structures: a calculator that is asked, or a file with forces."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import (
    Calculator,
    CalculatorError,
    PropertyNotImplementedError,
)

from fairchem_gdeq.evaluation.records import Label, Record


class Answer(NamedTuple):
    """What a reference says of a structure.

    Attributes:
        force: largest force on an atom that no constraint holds, eV/Angstrom; infinite where the
            calculation failed.
        energy: eV; infinite where the calculation failed, None where the reference has no energies.
        failure: why it failed, in a line; else empty.
    """

    force: float
    energy: float | None
    failure: str = ""


def ask(
    atoms: ase.Atoms, calculator: Calculator, catch: type[Exception] = CalculatorError
) -> Answer:
    """Ask a calculator for forces and energy of a structure, which stays as it is.

    It has failed, with a line in the log, where positions are not finite or it raises ``catch``, such as
    an SCF that does not converge.
    """
    if not np.isfinite(atoms.positions).all():
        return Answer(np.inf, np.inf, "positions are not finite")
    trial = atoms.copy()
    trial.calc = calculator
    try:
        with asking(calculator):
            forces = trial.get_forces(apply_constraint=True)
        force = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
        energy = _energy(trial)
    except catch as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logging.warning(f"reference at {atoms.info.get('sid', atoms)}: {failure}")
        return Answer(np.inf, np.inf, failure)
    if not np.isfinite(force):
        return Answer(np.inf, np.inf, "its forces are not finite")
    return Answer(force, energy)


@contextmanager
def asking(calculator: Calculator) -> Iterator[None]:
    """Inside, an error leaves nothing behind: some calculators would go on half prepared."""
    try:
        yield
    except Exception:
        calculator.reset()
        raise


def _energy(atoms: ase.Atoms) -> float | None:
    try:
        energy = float(atoms.get_potential_energy())
    except PropertyNotImplementedError:
        return None
    return energy if np.isfinite(energy) else None


def energy_above(end: Answer, target: Answer) -> float | None:
    """Reference energy at a relaxed structure minus that at its target, eV.

    Infinite where either calculation failed, None where the reference has no energies.
    """
    if end.energy is None or target.energy is None:
        return None
    if np.isinf(end.energy) or np.isinf(target.energy):
        return np.inf
    return end.energy - target.energy


class AskedReference:
    """A calculator that is asked at structures of many rows, and at each target once."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator
        self._targets: dict[int, Answer] = {}

    def judge(
        self,
        records: Sequence[Record],
        images: Sequence[ase.Atoms],
        targets: Sequence[ase.Atoms],
    ) -> list[Record]:
        """Records with the reference's force and energy at their structures.

        Args:
            records: of a batch.
            images: its structures; they and the targets carry ``FixAtoms``.
            targets: the relaxed structures of the data set.
        """
        found = []
        for record, atoms, target in zip(records, images, targets, strict=True):
            if record.row not in self._targets:
                self._targets[record.row] = ask(target, self.calculator)
            end = ask(atoms, self.calculator)
            above = energy_above(end, self._targets[record.row])
            found.append(replace(record, reference_force=end.force, reference_energy=above))
        return found


class ReferenceFile:
    """Structures with reference forces, by name: what somebody computed at a split's predictions.

    Any file that ASE reads with several frames, each with ``sid`` in its ``info``, as the one that
    ``--mode predict`` writes; where several have the same, also its ``row``. A frame without forces
    is a calculation that failed.
    """

    def __init__(self, path: str | Path) -> None:
        """Read all of it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ASE cannot read it, a frame has no ``sid``, or two have the same and not each a
                row of its own.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"reference {path}: no such file (a calculator is named by its _target_)"
            )
        self.frames: dict[str, dict[int | None, ase.Atoms]] = {}
        try:
            frames = ase.io.read(self.path, ":")
        except Exception as error:  # whatever ASE's readers raise on files of other kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"reference {path}: expected structures with forces in a format of ASE, such as .extxyz, "
                f"found a file that cannot be read ({reason})"
            ) from error
        for number, atoms in enumerate(frames):
            if "sid" not in atoms.info:
                raise ValueError(f"reference {path}: frame {number} has no sid in its info")
            sid = _canonical(atoms.info["sid"])
            known, row = self.frames.setdefault(sid, {}), atoms.info.get("row")
            if known and (row in known or None in (row, *known)):
                raise ValueError(
                    f"reference {path}: {sid} is there twice, without rows (info['row']) to tell which"
                )
            known[row] = atoms

    def frame(self, label: Label, numbers: Sequence[int]) -> ase.Atoms:
        """The structure of that label, whose atoms must be those with the atomic ``numbers``.

        Raises:
            ValueError: it is not in the file, or has other atoms, or in another order.
        """
        sid, row = label
        known = self.frames.get(_canonical(sid), {})
        found = next(iter(known.values())) if len(known) == 1 else known.get(row)
        if found is None:
            raise ValueError(
                f"reference {self.path}: no structure {sid} (row {row}); it has {len(self.frames)} "
                f"names, among them {', '.join(list(self.frames)[:5])}. Expected "
                "every structure of the split: add it, or score without this reference"
            )
        if list(found.numbers) != list(numbers):
            raise ValueError(
                f"reference {self.path}: {sid} has other atoms than the data set, or in another "
                "order (some DFT programs sort them by element: sort them back)"
            )
        return found

    def require_own_frames(self, labels: Iterable[Label]) -> None:
        """Refuse a data set in which several rows have a name that is once in the file.

        Raises:
            ValueError: names the first; only one of its rows can be meant.
        """
        rows: dict[str, int] = {}
        for sid, row in labels:
            name = _canonical(sid)
            if len(self.frames.get(name, {})) == 1 and rows.setdefault(name, row) != row:
                raise ValueError(
                    f"reference {self.path}: {sid} is there once, and rows {rows[name]} and {row} of "
                    "the data set have that name. Give each row a name of its own, or the file a frame "
                    "of each with its row (info['row'], as --mode predict writes them)"
                )

    @staticmethod
    def force(atoms: ase.Atoms, free: Sequence[bool]) -> float:
        """Largest stored force on a free atom, eV/Angstrom; infinite if there are none stored."""
        if atoms.calc is None or "forces" not in atoms.calc.results:
            return np.inf
        lengths = np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1)
        force = float(lengths[np.asarray(free)].max(initial=0.0))
        return force if np.isfinite(force) else np.inf


def _canonical(sid: object) -> str:
    """A name as ASE's extended XYZ reader leaves it: it turns what looks like a number into one."""
    for kind in (int, float):
        try:
            return str(kind(str(sid)))
        except ValueError:
            pass
    return str(sid)
