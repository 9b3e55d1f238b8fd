"""The ADAPT ``.pt`` format of the silicon defect data set (Zenodo 17411327), to ASE-LMDB.

    python -m fairchem_gdeq.data.adapt_pt TRAIN.pt data/zenodo --cell 16.406 --name train

A file holds a dict of two lists, one entry a snapshot: ``X`` [n, 13] (x, y, z in Angstrom, group,
period, seven element properties, loss weight) and ``Y`` [n, 3] forces in eV/Angstrom. Relaxations
follow one another without a mark; they are told apart where composition or positions jump.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from mendeleev.fetch import fetch_table
from numpy.typing import NDArray
from tqdm import tqdm

WHERE = (
    "The data set of the papers is on Zenodo, record 17411327 (https://zenodo.org/records/17411327)"
)
COLUMNS = 13


@dataclass(frozen=True)
class Frame:
    """One snapshot: atomic numbers [n], positions and forces [n, 3], loss weights [n]."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    forces: NDArray[np.float64]
    weights: NDArray[np.float64]


@cache
def _elements() -> dict[tuple[int, int], int]:
    """Atomic number by (group, period)."""
    table = fetch_table("elements")[["group_id", "period", "atomic_number"]].dropna()
    return {(int(g), int(p)): int(z) for g, p, z in table.to_numpy()}


def read_adapt_file(path: str | Path) -> list[Frame]:
    """All snapshots of a file, in order.

    Raises:
        FileNotFoundError: says where the data set is to be had.
        ValueError: names the file, the entry, what was expected and what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. {WHERE}; download it and name its place.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not a file of plain tensors saved by torch.save: {error}"
        ) from error
    if not isinstance(stored, dict) or not {"X", "Y"} <= stored.keys():
        found = sorted(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path}: expected a dict with the lists X and Y, found {found}")
    for key in ("X", "Y"):
        entries = stored[key]
        if not (isinstance(entries, list | tuple) or (torch.is_tensor(entries) and entries.ndim)):
            raise ValueError(
                f"{path}: expected a list of snapshots in {key}, found {type(entries).__name__}"
            )
    if len(stored["X"]) != len(stored["Y"]) or not len(stored["X"]):
        raise ValueError(f"{path}: {len(stored['X'])} entries in X and {len(stored['Y'])} in Y")
    return [
        _frame(path, i, _table(path, i, "X", x), _table(path, i, "Y", y))
        for i, (x, y) in enumerate(zip(stored["X"], stored["Y"], strict=True))
    ]


def _table(path: Path, i: int, key: str, value: object) -> NDArray[np.float64]:
    """An entry as an array, whatever precision it was stored in."""
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}, entry {i}: expected a table of numbers in {key}, "
            f"found {type(value).__name__}: {error}"
        ) from error


def _frame(path: Path, i: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> Frame:
    if x.ndim != 2 or x.shape[1] != COLUMNS or y.shape != (len(x), 3) or not len(x):
        raise ValueError(
            f"{path}, entry {i}: expected X [n, {COLUMNS}] and Y [n, 3], found {x.shape}, {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{path}, entry {i}: NaN or infinity in positions, descriptors or forces")
    numbers = []
    for group, period in x[:, 3:5].tolist():
        # Exact look-up: rounding would turn normalised columns into elements that are not there.
        if (group, period) not in _elements():
            raise ValueError(
                f"{path}, entry {i}: no element has group {group:g} and period {period:g}; columns 3 "
                "and 4 of X should hold them, not normalised"
            )
        numbers.append(_elements()[group, period])
    return Frame(np.array(numbers), x[:, :3], y, x[:, 12])


def split_trajectories(
    frames: list[Frame], cell: float, max_jump: float = 0.5
) -> list[list[Frame]]:
    """Relaxations, split where composition changes or an atom jumps; positions unwrapped in each.

    Args:
        frames: snapshots in order.
        cell: edge of the cubic cell, Angstrom.
        max_jump: largest minimum-image move of an atom between snapshots of one relaxation,
            Angstrom. A new relaxation starts from unrelaxed sites of another defect.

    Raises:
        ValueError: cell or max_jump is not a positive, finite length.
    """
    for name, length in (("cell", cell), ("max_jump", max_jump)):
        if not 0 < length < math.inf:
            raise ValueError(f"expected a positive length in Angstrom for {name}, found {length}")
    out: list[list[Frame]] = []
    for frame in frames:
        last = out[-1][-1] if out else None
        if last is not None and np.array_equal(last.numbers, frame.numbers):
            move = frame.positions - last.positions
            move -= cell * np.round(move / cell)
            if np.linalg.norm(move, axis=1).max() <= max_jump:
                out[-1].append(
                    Frame(frame.numbers, last.positions + move, frame.forces, frame.weights)
                )
                continue
        out.append([frame])
    return out


def convert(
    source: str | Path, folder: str | Path, name: str, cell: float, max_jump: float = 0.5
) -> tuple[int, int]:
    """Write ``folder/name`` (IS2RS rows) and ``folder/name_frames`` (force rows).

    Relaxations of fewer than two snapshots have no target and go to the frames only.

    Returns:
        Numbers of IS2RS rows and of frames.
    """
    relaxations = split_trajectories(read_adapt_file(source), cell, max_jump)
    rows: list[tuple[Atoms, dict[str, object]]] = []
    frames: list[tuple[Atoms, dict[str, object]]] = []
    for i, path in enumerate(tqdm(relaxations, desc=str(source))):
        sid = f"{name}{i}"
        for j, frame in enumerate(path):
            atoms = _atoms(frame, cell)
            atoms.calc = SinglePointCalculator(atoms, forces=frame.forces)
            frames.append((atoms, {"sid": f"{sid}_{j}", "loss_weight": frame.weights}))
        if len(path) > 1:
            data = {"sid": sid, "pos_relaxed": path[-1].positions}
            rows.append((_atoms(path[0], cell), data))
    for kind, content in ((name, rows), (f"{name}_frames", frames)):
        _write(Path(folder) / kind, content)
    return len(rows), len(frames)


def _atoms(frame: Frame, cell: float) -> Atoms:
    return Atoms(frame.numbers, positions=frame.positions, cell=[cell] * 3, pbc=True)


def _write(folder: Path, rows: list[tuple[Atoms, dict[str, object]]]) -> None:
    """ASE-LMDB and fairchem's metadata; refuses to write over anything."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it or choose another place")
    folder.mkdir(parents=True, exist_ok=True)
    if not rows:
        return
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for atoms, data in rows:
            database.write(atoms, data=data)
    np.savez(folder / "metadata.npz", natoms=np.array([len(atoms) for atoms, _ in rows]))


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the .pt file")
    parser.add_argument("folder", help="where the two data sets go")
    parser.add_argument("--name", default="train", help="of the split")
    parser.add_argument(
        "--cell", type=float, required=True, help="edge of the cubic cell, Angstrom"
    )
    parser.add_argument("--max-jump", type=float, default=0.5, help="Angstrom between snapshots")
    arguments = parser.parse_args()
    rows, frames = convert(
        arguments.source, arguments.folder, arguments.name, arguments.cell, arguments.max_jump
    )
    print(f"{rows} relaxations and {frames} frames in {arguments.folder}")


if __name__ == "__main__":
    main()
