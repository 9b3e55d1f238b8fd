"""What is known of each explored structure, a small file each, and the folder that they lie in."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import decode, encode
from numpy.typing import NDArray

from fairchem_gdeq.data.rows import free_atoms

LONGEST = 150  # characters of a file's name that come from a structure's


@dataclass(frozen=True)
class Label:
    """What the reference says of a frame.

    Attributes:
        forces: [n, 3] eV/Angstrom; NaN where it failed.
        energy: eV; NaN where not known.
        failure: how it failed, else empty.
    """

    forces: NDArray[np.float64] | float = np.nan
    energy: float = np.nan
    failure: str = ""


@dataclass(frozen=True)
class Record:
    """A relaxation by the model: k frames of its path, and their labels as far as they are known.

    Attributes:
        name: of the structure.
        atoms: the start, as it was given.
        code: how the relaxation ended, a value of ``gdeq.Code``.
        reason: why it was not relaxed, else empty.
        right: it ended in its target's basin and is left out for that.
        repeated: frames left out, as close to a chosen one.
        last: step of the path's end.
        steps: [k] force evaluations before each frame: 0 is the start.
        positions: [k, n, 3], Angstrom.
        predicted: [k, n, 3] the model's own forces there, eV/Angstrom.
        energies: [k] of the reference, eV; NaN where not known.
        forces: [k, n, 3] of the reference, eV/Angstrom; NaN where not known.
        failures: [k] how the reference failed, else empty.
    """

    name: str
    atoms: Atoms
    code: str
    reason: str
    right: bool
    repeated: int
    last: int
    steps: NDArray[np.int64]
    positions: NDArray[np.float64]
    predicted: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    failures: NDArray[np.str_]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Frames [k] with forces of the reference."""
        return np.asarray(np.isfinite(self.forces).all(axis=(1, 2)))

    @property
    def free(self) -> NDArray[np.bool_]:
        """Atoms [n] that may move."""
        return free_atoms(self.atoms)

    def sid(self, k: int) -> str:
        """The frame's name, of structure and step. It never looks like a number."""
        return f"{self.name}_step{self.steps[k]}"

    def frame(self, k: int) -> Atoms:
        """A frame with its name, and with energy and forces where they are known."""
        atoms: Atoms = self.atoms.copy()
        atoms.positions[:] = self.positions[k]  # past the constraints
        atoms.info["sid"] = self.sid(k)
        if self.labelled[k]:
            labels = {"energy": float(self.energies[k]), "forces": self.forces[k]}
            known = {key: value for key, value in labels.items() if np.isfinite(value).all()}
            atoms.calc = SinglePointCalculator(atoms, **known)
        return atoms

    def with_labels(self, labels: Mapping[int, Label]) -> Record:
        """With labels of some frames in place of theirs."""
        energies, forces = self.energies.copy(), self.forces.copy()
        failures = self.failures.tolist()
        for k, one in labels.items():
            energies[k], forces[k], failures[k] = one.energy, one.forces, one.failure
        return replace(
            self, energies=energies, forces=forces, failures=np.array(failures, dtype=np.str_)
        )

    def save(self, file: Path) -> None:
        """Write it; the file is complete or not there."""
        values = dict(vars(self)) | {"atoms": np.array(encode(self.atoms.todict()))}
        with replaced(file) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **values)

    @classmethod
    def load(cls, file: Path) -> Record:
        """Read it.

        Raises:
            ValueError: something else lies there.
        """
        try:
            with np.load(file) as stored:
                values = {key: stored[key] for key in cls.__dataclass_fields__}
            atoms = Atoms.fromdict(decode(str(values.pop("atoms"))))
        except Exception as error:  # zip, zlib, numpy, json: whatever damaged bytes raise
            raise ValueError(
                f"{file}: no complete record of an explored structure ({type(error).__name__}: "
                f"{error}). Delete it; the same command makes it again"
            ) from error
        single = {key: value.item() for key, value in values.items() if not value.ndim}
        return cls(atoms=atoms, **values | single)


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A place beside ``file`` to write to, which takes its name when all is written."""
    part = file.with_name(f"{file.name}.partial")
    yield part
    os.replace(part, file)


class Folder:
    """A folder that is explored into: the packed data set, and ``work`` with what it is made of."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.work = self.path / "work"
        self.structures = self.work / "structures"

    def file(self, name: str) -> Path:
        """Where a structure's record lies."""
        quoted = quote(name, safe=" ")
        if len(quoted) > LONGEST:
            quoted = f"{quoted[:LONGEST]}-{sha256(name.encode()).hexdigest()[:12]}"
        return self.structures / f"{quoted}.npz"

    def records(self) -> Iterator[tuple[Path, Record]]:
        """All of them with their files, in one order however they were made.

        Raises:
            ValueError: as ``Record.load``.
        """
        for file in sorted(self.structures.glob("*.npz")):
            yield file, Record.load(file)

    def claim(self, what: str, facts: Mapping[str, object]) -> None:
        """Note what the folder is made by, or compare with what was noted.

        Args:
            what: ``settings`` or ``reference``: the name of the note.
            facts: that must not change, plain values.

        Raises:
            FileExistsError: something else was noted, or the folder holds a data set of others.
        """
        note = self.work / f"{what}.json"
        if not self.work.is_dir() and self.path.is_dir() and any(self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} holds other files: choose another folder. Configs take several: "
                "forces.src=[ONE,OTHER]"
            )
        self.structures.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(facts))
        if not note.exists():
            # Parts of a job may come here together: each has a file of its own to rename.
            handle, part = tempfile.mkstemp(dir=self.work, prefix=f"{what}.")
            with os.fdopen(handle, "w") as stream:
                json.dump(wanted, stream, indent=1)
            os.replace(part, note)
        found = json.loads(note.read_text())
        differ = [
            f"{key}: {found.get(key)} there, {wanted.get(key)} now"
            for key in dict.fromkeys([*found, *wanted])
            if found.get(key) != wanted.get(key)
        ]
        if differ:
            raise FileExistsError(
                f"{self.path} was made by another {what.removesuffix('s')}: {'; '.join(differ)}. Give "
                "the same as before, or another folder"
            )
