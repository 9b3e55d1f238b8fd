"""IS2RS data of any kind to ASE-LMDB, and a look at what a data set holds.

    python -m fairchem_gdeq.data.convert SRC DST --workers 4
    python -m fairchem_gdeq.data.convert SRC DST --part 3/16
    python -m fairchem_gdeq.data.convert inspect SRC

SRC is an OC20/OC22 IS2RE LMDB or a folder of them, a folder of ASE trajectories (first and last
frame), or an ASE database. DST is a folder, for ``src`` of the dataset format ``is2rs``. Run an
interrupted conversion again and it goes on. Parts lie in folders in DST, and ``DST/part_*`` is all of
them. (For a SRC named "inspect" write ./inspect.)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.db.core import Database
from tqdm import tqdm

from fairchem_gdeq.data import writer
from fairchem_gdeq.data.parts import FINAL, Part
from fairchem_gdeq.data.reading import BadRows, Source, listed, read_row, repeated_names
from fairchem_gdeq.data.rows import CHECKS, TARGET, BadRow, free_atoms
from fairchem_gdeq.data.sources import open_source

METADATA = "metadata.npz"
SAMPLE = 200  # rows compared with the source after writing
ADVICE = "Mend them, or run again with --skip-bad to leave them out; what was converted is kept."


@dataclass(frozen=True)
class Result:
    """What a conversion did: rows written, rows compared with the source, rows left out."""

    written: int
    compared: int
    skipped: list[BadRow]


def convert(
    path: str | Path,
    folder: str | Path,
    workers: int = 1,
    skip_bad: bool = False,
    target_key: str | None = TARGET,
    part: Part | None = None,
) -> Result:
    """Write ``folder/data.aselmdb`` and ``folder/metadata.npz``, verify them, or go on with it.

    Args:
        path: source, see ``open_source``.
        workers: processes that read and encode.
        skip_bad: leave bad rows out instead of ending with the list of them.
        target_key: of the relaxed positions in the source; None if it has none.
        part: the rows to convert, into a folder of their own in ``folder``; None: all.

    Raises:
        FileExistsError: the folder holds something else.
        BadRows: there are bad rows; no finished file is left.
        RuntimeError: what was written is not what was read.
    """
    path, folder = Path(path), Path(folder)
    if part is not None:
        folder = part.folder(folder)
    final, begun = folder / FINAL, folder / f"{FINAL}.partial"
    ours = {begun.name, f"{begun.name}-lock", f"{FINAL}.copy", f"{FINAL}.copy-lock", METADATA}
    if folder.exists() and (other := {each.name for each in folder.iterdir()} - ours):
        what = "a finished data set" if FINAL in other else f"other files ({min(other)}, ...)"
        raise FileExistsError(f"{folder} holds {what}: remove it or choose another folder")
    if folder.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{folder} lies in the source {path}: choose a folder outside of it")
    source = open_source(path, target_key, part)
    folder.mkdir(parents=True, exist_ok=True)
    partial = writer.PartialFile(begun, _fingerprint(path, source))
    try:
        writer.write(source, path, partial, workers, part)
        if partial.bad and (not skip_bad or not partial.natoms):
            raise BadRows(str(path), list(partial.bad.values()), len(source), ADVICE)
        compared = _verify(source, partial)
        np.savez(folder / METADATA, natoms=np.array(partial.natoms))
        stamp = {
            "checked_rows": len(partial.natoms),
            "checks": CHECKS,
            "targets": target_key is not None,
            "repeated_names": repeated_names(partial.sids),
            "names": partial.sids,  # to be compared with those of other files of one data set
        }
        partial.finish({"fairchem_gdeq": stamp}, final)
    finally:
        partial.close()
    return Result(len(partial.natoms), compared, list(partial.bad.values()))


def _fingerprint(path: Path, source: Source) -> dict[str, object]:
    """What must not have changed when a conversion goes on."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    facts = [p.stat() for p in files if not p.name.endswith("-lock")]
    return {
        "source": str(path.resolve()),
        "rows": len(source),
        "bytes": sum(fact.st_size for fact in facts),
        "newest": max(fact.st_mtime_ns for fact in facts),
        "target_key": source.target_key,
        "noted": ["natoms", "sids", "bad"],  # of each chunk; older ones had no names
        "checks": CHECKS,
    }


def _verify(source: Source, partial: writer.PartialFile) -> int:
    """Count the rows, and compare some, spread evenly, with the source; the number compared."""
    database = connect(partial.path, type="aselmdb", readonly=True, use_lock_file=False)
    total = len(partial.natoms)
    if len(database) != total or total + len(partial.bad) != len(source):
        raise RuntimeError(
            f"{partial.path}: {len(database)} rows; expected {len(source)} less {len(partial.bad)} bad"
        )
    good = [index for index in range(len(source)) if index not in partial.bad]
    sample = np.unique(np.linspace(0, total - 1, min(total, SAMPLE)).round().astype(int))
    for row in tqdm(sample.tolist(), desc="verify", unit="row"):
        expected, found = read_row(source, good[row]), _written(database, row)
        if difference := _difference(expected, found, source.target_key):
            raise RuntimeError(
                f"{partial.path}, row {row + 1}: {difference} differs from "
                f"{source.where(good[row])}. Remove {partial.path} and convert again."
            )
    return len(sample)


def _written(database: Database, row: int) -> Atoms:
    stored = database.get(row + 1)  # ids begin at 1
    atoms: Atoms = stored.toatoms()
    atoms.info.update(stored.data)
    return atoms


def _difference(expected: Atoms, found: Atoms, target_key: str | None) -> str | None:
    """The first thing in which two rows differ, to the last digit."""
    pairs = {
        "positions": (expected.positions, found.positions),
        "species": (expected.numbers, found.numbers),
        "cell": (np.asarray(expected.cell), np.asarray(found.cell)),
        "pbc": (expected.pbc, found.pbc),
        "tags": (expected.get_tags(), found.get_tags()),
        "free atoms": (free_atoms(expected), free_atoms(found)),
    }
    if target_key is not None:
        pairs["target"] = (np.asarray(expected.info[target_key]), np.asarray(found.info[TARGET]))
    return next((name for name, (a, b) in pairs.items() if not np.array_equal(a, b)), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairchem_gdeq.data.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("convert", help="SRC to DST; the word may be left out")
    look = actions.add_parser("inspect", help="print what SRC holds and what is wrong in it")
    for each in (make, look):
        each.add_argument("source", metavar="SRC", type=Path)
        target = each.add_mutually_exclusive_group()
        target.add_argument("--target-key", default=TARGET, help="of the relaxed positions")
        target.add_argument("--no-target", action="store_true", help="SRC holds starts only")
    make.add_argument("folder", metavar="DST", type=Path)
    make.add_argument("--workers", type=int, default=1, help="processes that read and encode")
    make.add_argument("--part", type=Part.parse, metavar="I/N", help="of N parts the I-th alone")
    make.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and name them")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 where inspect found rows that cannot be used; else ends with a message."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] not in ("convert", "inspect", "-h", "--help"):
        words = ["convert", *words]
    options = _parser().parse_args(words)
    target_key = None if options.no_target else options.target_key
    try:
        if options.action == "inspect":
            from fairchem_gdeq.data.summary import summarise, text

            found = summarise(open_source(options.source, target_key))
            print(text(found))
            return 1 if found.bad else 0
        result = convert(
            options.source,
            options.folder,
            options.workers,
            options.skip_bad,
            target_key,
            options.part,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"convert: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("convert: interrupted; the same command goes on from here") from None
    if result.skipped:
        print(f"{len(result.skipped)} bad rows left out:\n{listed(result.skipped)}")
    print(
        f"{result.written} rows in {options.folder}; count right, {result.compared} compared with "
        f"{options.source}: equal"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
