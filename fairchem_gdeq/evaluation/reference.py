"""Reference forces at relaxed structures: from a calculator at once, or from a file afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import Calculator, CalculatorError

from fairchem_gdeq.evaluation.records import Label, Record


def largest_force(atoms: ase.Atoms, calculator: Calculator) -> float:
    """Largest force on an atom that no constraint holds, eV/Angstrom.

    Infinite, with a line in the log, where positions are not finite or the calculation fails (an
    ASE ``CalculatorError``, such as an SCF that does not converge).
    """
    if not np.isfinite(atoms.positions).all():
        return np.inf
    trial = atoms.copy()
    trial.calc = calculator
    try:
        return _largest(trial)
    except CalculatorError as error:
        logging.warning(f"reference forces of {atoms.info.get('sid', atoms)}: {error}")
        return np.inf


def _largest(atoms: ase.Atoms) -> float:
    forces = atoms.get_forces(apply_constraint=True)
    force = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
    return force if np.isfinite(force) else np.inf


def add_forces(
    records: Sequence[Record], images: Sequence[ase.Atoms], calculator: Calculator
) -> list[Record]:
    """Records with the reference force at their structures, which carry ``FixAtoms``."""
    return [
        replace(record, reference_force=largest_force(atoms, calculator))
        for record, atoms in zip(records, images, strict=True)
    ]


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
            ValueError: a frame has no ``sid``, or two have the same and not each a row of its own.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"reference {path}: no such file (a calculator is named by its _target_)"
            )
        self.frames: dict[str, dict[int | None, ase.Atoms]] = {}
        for number, atoms in enumerate(ase.io.read(self.path, ":")):
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
            KeyError: it is not in the file.
            ValueError: other atoms, or in another order.
        """
        sid, row = label
        known = self.frames.get(_canonical(sid), {})
        found = next(iter(known.values())) if len(known) == 1 else known.get(row)
        if found is None:
            raise KeyError(
                f"reference {self.path}: no structure {sid} (row {row}); it has {len(self.frames)} "
                f"names, among them {', '.join(list(self.frames)[:5])}"
            )
        if list(found.numbers) != list(numbers):
            raise ValueError(
                f"reference {self.path}: {sid} has other atoms than the data set, or in another "
                "order (some DFT programs sort them by element)"
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
