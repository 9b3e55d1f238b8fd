"""How far the ends of one start lie apart when it is relaxed in other company, as after an interruption.

python -m benchmarks.packs                  # silicon validation split, base of command 1
python -m benchmarks.packs --double         # weights and positions in double precision
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np

import fairchem_gdeq as gdeq
from fairchem_gdeq.data.is2rs import IS2RSDataset

ROOT = Path(__file__).parents[1]


def starts_of(src: str, dataset: str) -> list[ase.Atoms]:
    """The starts of a split."""
    rows = IS2RSDataset({"src": src, "a2g_args": {"task_name": dataset}})
    found = []
    for row in rows:
        numbers, pos, cell = (row[k].numpy() for k in ("atomic_numbers", "pos", "cell"))
        atoms = ase.Atoms(numbers, pos, cell=cell[0], pbc=row.pbc[0].numpy())
        atoms.set_constraint(ase.constraints.FixAtoms(mask=row.fixed.numpy() == 1))
        found.append(atoms)
    return found


def furthest(one: gdeq.Relaxations, other: gdeq.Relaxations) -> np.ndarray:
    """The longest way of an atom from end to end, of each structure, Angstrom."""
    return np.array(
        [
            np.linalg.norm(a.positions - b.positions, axis=1).max()
            for a, b in zip(one.atoms, other.atoms, strict=True)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "data/si/base/esen_all_frames.pt"))
    parser.add_argument("--src", default=str(ROOT / "data/si/val"))
    parser.add_argument("--dataset", default="si")
    parser.add_argument("--fmax", type=float, default=0.02, help="eV/Angstrom")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 260, 528, 1040], help="atoms")
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    potential = gdeq.load_potential(arguments.base, arguments.dataset, device="cpu")
    if arguments.double:
        potential = replace(potential, model=potential.model.double())
    starts = starts_of(arguments.src, arguments.dataset)
    ends = [
        gdeq.relax(starts, potential, fmax=arguments.fmax, max_atoms=atoms)
        for atoms in arguments.packs
    ]
    print(f"{len(starts)} structures to fmax {arguments.fmax}, {potential.dtype}")
    print("| atoms in a pack | evaluations | other number | median apart (A) | 95% | most |")
    print("|---:|---:|---:|---:|---:|---:|")
    for atoms, end in zip(arguments.packs, ends, strict=True):
        apart = furthest(ends[0], end)
        other = int((end.evaluations != ends[0].evaluations).sum())
        print(
            f"| {atoms} | {end.evaluations.sum()} | {other} | {np.median(apart):.1e} "
            f"| {np.quantile(apart, 0.95):.1e} | {apart.max():.1e} |"
        )


if __name__ == "__main__":
    main()
