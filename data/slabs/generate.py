"""Relax adsorbates on metal slabs on SevenNet-0 and pack them as IS2RS sets.

    python data/slabs/generate.py relax --workers 2     # goes on where it was; keeps relaxed/*.npz
    python data/slabs/generate.py pack                  # LMDBs of these; splits that are complete

Both leave alone what is packed already, unless it is named with ``--splits``. Frames that
``explore.py`` has labelled go into ``train_frames``.

Needs the ``data`` extra of the project (the ``sevenn`` package, which ships the weights).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from anomalies import anomaly
from ase import Atoms
from ase.db import connect
from plan import in_order, plan
from systems import System, build

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import packing  # noqa: E402
from ase_lmdb import write  # noqa: E402
from relaxing import Start  # noqa: E402
from sevennet import relax_all  # noqa: E402

FMAX = 0.01  # eV/Angstrom, of the free atoms
MAX_STEPS = 400
FRAMES = 12  # kept of each relaxation
EXPLORED = HERE / "work" / "explored"  # where explore.py leaves what it labels
# Whose relaxations' frames lie in ``<split>_frames``, where it is not just the split itself.
FRAMES_FROM = {
    "train": ("train", "other_metals"),
    "other_metals": (),
    "test": (),
    "test_more": (),
}


def file_of(system: System, relaxed: Path) -> Path:
    """Where the system's record lies."""
    return relaxed / f"{system.name}.npz"


def relax(systems: dict[str, list[System]], splits: list[str], relaxed: Path, workers: int) -> None:
    """Make the records that are missing in these splits, in the order of the plan."""
    starts = [
        Start(file_of(system, relaxed), partial(build, system), FRAMES)
        for split, system in in_order(systems)
        if split in splits
    ]
    relax_all(starts, workers, FMAX, MAX_STEPS)


def explored(folder: Path) -> list[tuple[Atoms, dict[str, object]]]:
    """The frames that ``explore.py`` has labelled, of all rounds."""
    return [
        (packing.labelled(row.toatoms()), {"sid": row.data["sid"]})
        for file in sorted(folder.glob("*/data.aselmdb"))
        for row in connect(file, type="aselmdb", readonly=True).select()
    ]


def pack(split: str, systems: dict[str, list[System]], relaxed: Path, out: Path) -> None:
    """Write ``<split>/`` (starts and targets), ``<split>_frames/`` and the split's statistics.

    ``train_frames`` are of the titanium training systems, of the other metals, and explored ones.

    Raises:
        Incomplete: some relaxations are not there; nothing was written.
    """
    wanted = {split, *FRAMES_FROM.get(split, ())}
    found = {
        name: packing.read_split(name, {s.name: file_of(s, relaxed) for s in systems[name]})
        for name in sorted(wanted)
    }
    kept = {
        name: {sid: record for sid, record in records.items() if record.max_forces[-1] <= FMAX}
        for name, records in found.items()
    }
    rows: list[tuple[Atoms, dict[str, object]]] = []
    anomalies: dict[str, list[str]] = {}
    for sid, record in kept[split].items():
        start, end = packing.start_of(record), record.frames[-1]
        what = anomaly(start, end)
        if what:
            anomalies.setdefault(what, []).append(sid)
        data = {
            "sid": sid,
            "pos_relaxed": end.positions,
            "anomaly": what,
            "energy_relaxed": float(end.get_potential_energy()),
        }
        rows.append((start, data))
    sources = FRAMES_FROM.get(split, (split,))
    frames = [row for name in sources for row in packing.frames_of(kept[name])]
    statistics: dict[str, object] = {
        "structures": len(rows),
        "anomalies": anomalies,
        "not_converged": [sid for sid in found[split] if sid not in kept[split]],
    }
    if split == "train":
        met = explored(EXPLORED)
        frames += met
        statistics["explored"] = len({str(data["sid"]).rpartition("_")[0] for _, data in met})
    write(out / split, rows)
    if frames:
        write(out / f"{split}_frames", frames)
        statistics["frames"] = len(frames)
    packing.add_statistics(out, split, statistics | packing.measured(kept[split].values()))


def main() -> None:
    systems = plan()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax", "pack"))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--relaxed", type=Path, default=HERE / "relaxed", help="folder of records")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the packed files")
    parser.add_argument("--splits", nargs="+", choices=systems, help="default: not packed yet")
    arguments = parser.parse_args()
    chosen = arguments.splits or [s for s in systems if not packing.packed(arguments.out, s)]
    if arguments.action == "relax":
        relax(systems, chosen, arguments.relaxed, arguments.workers)
        return
    one = partial(pack, systems=systems, relaxed=arguments.relaxed, out=arguments.out)
    packing.each(chosen, one)


if __name__ == "__main__":
    main()
