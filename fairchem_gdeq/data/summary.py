"""What an IS2RS data set holds, how far its atoms move, and what is wrong in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from tqdm import tqdm

from fairchem_gdeq.data.reading import Source, listed, read_row
from fairchem_gdeq.data.rows import BadRow, free_atoms, masses
from fairchem_gdeq.relax import Structures
from fairchem_gdeq.relax.loss import delta_q, max_displacement
from fairchem_gdeq.relax.rigid import FREE, pinned_motions

CHUNK = 128  # structures measured at once
STILL = 1e-3  # Angstrom: a fixed atom that moved more was not fixed


@dataclass
class Summary:
    """Counts and per-structure measures of the good rows; ``bad`` are the others.

    ``delta_q`` in amu^0.5 Angstrom and ``moved`` in Angstrom are of the free atoms, minimum image,
    the rigid shift taken out where no atom is fixed, and the rotation where the structure is not
    periodic either, as scoring does for a field that feels neither; ``fixed_moved`` in Angstrom of the
    fixed ones.
    """

    natoms: list[int] = field(default_factory=list)
    atoms_of: Counter[int] = field(default_factory=Counter)  # by atomic number
    structures_of: Counter[int] = field(default_factory=Counter)
    tags: Counter[int] = field(default_factory=Counter)
    fixed: list[int] = field(default_factory=list)
    sids: Counter[str] = field(default_factory=Counter)
    delta_q: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    fixed_moved: list[float] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def add(self, atoms: Atoms) -> None:
        """Count a structure; displacements are added by ``measure``."""
        self.natoms.append(len(atoms))
        numbers = Counter(atoms.numbers.tolist())
        self.atoms_of += numbers
        self.structures_of.update(numbers.keys())
        self.tags.update(atoms.get_tags().tolist())
        self.fixed.append(int((~free_atoms(atoms)).sum()))
        self.sids[str(atoms.info.get("sid"))] += 1

    def measure(self, rows: list[Atoms], target_key: str) -> None:
        """Displacements from start to target."""
        positions = torch.from_numpy(np.concatenate([a.positions for a in rows]))
        target = np.concatenate([np.asarray(a.info[target_key], dtype=float) for a in rows])
        free = _structures(rows, [free_atoms(a) for a in rows])
        fixed = _structures(rows, [~free_atoms(a) for a in rows])
        # As Operator.build by default, for a field that feels neither shifts nor turns.
        pin = torch.tensor(pinned_motions(free.known, shifts=True, turns=True))
        pair = (positions, torch.from_numpy(target))
        self.delta_q += delta_q(*pair, free, pin).tolist()
        self.moved += max_displacement(*pair, free, pin).tolist()
        held = torch.full_like(pin, FREE)
        self.fixed_moved += max_displacement(*pair, fixed, held).tolist()


def _structures(rows: list[Atoms], moving: list[NDArray[np.bool_]]) -> Structures:
    return Structures(
        batch=torch.repeat_interleave(torch.tensor([len(a) for a in rows])),
        free=torch.from_numpy(np.concatenate(moving)),
        masses=torch.from_numpy(np.concatenate([masses(a) for a in rows])),
        cell=torch.from_numpy(np.array([np.asarray(a.cell) for a in rows])),
        pbc=torch.from_numpy(np.array([a.pbc for a in rows])),
    )


def summarise(source: Source) -> Summary:
    """Look at every row, with a progress bar."""
    found = Summary()
    waiting: list[Atoms] = []
    for index in tqdm(range(len(source)), desc="inspect", unit="row"):
        try:
            atoms = read_row(source, index)
        except BadRow as error:
            found.bad.append(error)
            continue
        found.add(atoms)
        waiting.append(atoms)
        if len(waiting) == CHUNK:
            _flush(found, waiting, source.target_key)
    _flush(found, waiting, source.target_key)
    return found


def _flush(found: Summary, waiting: list[Atoms], target_key: str | None) -> None:
    if waiting and target_key is not None:
        found.measure(waiting, target_key)
    waiting.clear()


def text(found: Summary) -> str:
    """The summary for people."""
    count = len(found.natoms)
    lines = [f"structures       {count} good, {len(found.bad)} bad"]
    if count:
        elements = ", ".join(
            f"{chemical_symbols[z]} {found.structures_of[z]} ({found.atoms_of[z]})"
            for z in sorted(found.atoms_of)
        )
        tags = ", ".join(f"{tag}: {found.tags[tag]}" for tag in sorted(found.tags))
        fixed = np.array(found.fixed)
        lines += [
            f"atoms            {_spread(found.natoms, '.0f')}; {sum(found.natoms)} in all",
            f"elements         {elements}: structures (atoms)",
            f"tags             {tags}: atoms",
            f"fixed atoms      {fixed.sum()} in {(fixed > 0).sum()} structures",
        ]
    if found.moved:
        lines += [
            f"largest move     {_spread(found.moved)} Angstrom, of a free atom",
            (
                f"Delta Q          {_spread(found.delta_q)} amu^0.5 Angstrom; mean "
                f"{np.mean(found.delta_q):.3f}, sum {np.sum(found.delta_q):.3f}"
            ),
        ]
    wrong = _wrong(found)
    return "\n".join(
        [*lines, "wrong            " + ("\n".join(wrong) if wrong else "nothing found")]
    )


def _spread(values: list[int] | list[float], form: str = ".3f") -> str:
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"min {low:{form}}, median {middle:{form}}, max {high:{form}}"


def _wrong(found: Summary) -> list[str]:
    lines = []
    repeated = [sid for sid, times in found.sids.items() if times > 1]
    if repeated:
        lines.append(f"{len(repeated)} sids occur more than once ({', '.join(repeated[:5])}, ...)")
    if slipped := sum(move > STILL for move in found.fixed_moved):
        lines.append(
            f"fixed atoms of {slipped} structures move, by up to {max(found.fixed_moved):.3f} Angstrom"
        )
    if still := sum(move == 0 for move in found.moved):
        lines.append(f"{still} structures have a target equal to their start")
    if found.bad:
        lines.append(f"{len(found.bad)} rows cannot be used:\n{listed(found.bad)}")
    return lines
