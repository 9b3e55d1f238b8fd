"""Label what a model meets in its own relaxations: frames of their paths, for force training.

    python -m fairchem_gdeq.explore STARTS MODEL DST --calculator CLASS KEY=VALUE ... --workers 4
    python -m fairchem_gdeq.explore STARTS MODEL DST --write frames.extxyz
    python -m fairchem_gdeq.explore STARTS MODEL DST --read labelled.extxyz
    python -m fairchem_gdeq.explore pack DST

STARTS is an IS2RS data set of any format, or any file that ASE reads. MODEL is an inference checkpoint
of fairchem 2. DST becomes a force data set, for forces.src of a config. CLASS is an ASE calculator by
its import path. Run an interrupted command again and it goes on. With --part I/N the structures are
dealt out to N jobs of one DST; when all have ended, "pack" makes the data set. (For a STARTS named
"pack" write ./pack.)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairchem_gdeq.data.reading import listed
from fairchem_gdeq.data.rows import TARGET
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.explore import (
    Folder,
    Reference,
    Settings,
    Start,
    label,
    open_starts,
    pack,
    read_labels,
    walk,
    write_frames,
)
from fairchem_gdeq.explore.pack import LARGEST
from fairchem_gdeq.relax import LBFGS, Relaxer


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    try:
        found = int(number), int(of)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairchem_gdeq.explore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("explore", help="relax, choose, label; the word may be left out")
    join = actions.add_parser("pack", help="make the data set of what is labelled in DST")
    make.add_argument("starts", metavar="STARTS", type=Path)
    make.add_argument("model", metavar="MODEL", type=Path)
    for each in (make, join):
        each.add_argument("folder", metavar="DST", type=Path)
        each.add_argument(
            "--largest-force",
            type=float,
            default=LARGEST,
            help="eV/Angstrom on a free atom: frames with more are left out (%(default)s)",
        )
    labels = make.add_mutually_exclusive_group(required=True)
    labels.add_argument("--calculator", nargs="+", metavar=("CLASS", "KEY=VALUE"))
    labels.add_argument("--write", metavar="FILE", type=Path, help="frames without labels")
    labels.add_argument("--read", metavar="FILE", type=Path, help="labelled frames, by their sid")
    make.add_argument("--dataset", help="name by which the model knows such data, if several")
    make.add_argument("--frames", type=int, default=Settings.frames, help="of a path (%(default)s)")
    make.add_argument(
        "--tolerance",
        type=float,
        default=Settings.tolerance,
        help="Angstrom: frames closer to a chosen one are dropped (%(default)s)",
    )
    make.add_argument("--fmax", type=float, default=0.02, help="eV/Angstrom (%(default)s)")
    make.add_argument("--max-steps", type=int, default=60, help="of the solver (%(default)s)")
    make.add_argument("--horizon", type=int, default=0, help="plain steps first (%(default)s)")
    make.add_argument(
        "--alpha", type=float, default=Settings.alpha, help="their size (%(default)s)"
    )
    make.add_argument("--only", choices=("wrong",), help="starts that end far from their target")
    make.add_argument(
        "--basin",
        type=float,
        default=Basin.delta_q,
        help="Delta Q below which a relaxation is right, amu^0.5 Angstrom (%(default)s)",
    )
    make.add_argument("--target-key", default=TARGET, help="of the relaxed positions")
    make.add_argument("--skip-bad", action="store_true", help="leave bad starts out, and name them")
    make.add_argument("--workers", type=int, default=1, help="processes on this machine")
    make.add_argument(
        "--part", type=_part, metavar="I/N", help="do one of N parts, without packing"
    )
    make.add_argument("--retry", action="store_true", help="try again what failed before")
    make.add_argument("--device", help="of the model; default: a GPU if there is one")
    make.add_argument("--max-atoms", type=int, help="relaxed together")
    make.add_argument("--trust-files", action="store_true", help="run what MODEL asks for")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    relaxer = Relaxer(options.horizon, LBFGS(), options.fmax, options.max_steps)
    return Settings(
        model=str(options.model),
        dataset=options.dataset,
        relaxer=relaxer,
        alpha=options.alpha,
        frames=options.frames,
        tolerance=options.tolerance,
        right_below=options.basin if options.only else None,
        device=options.device,
        max_atoms=options.max_atoms,
        trust_files=options.trust_files,
    )


def _starts(options: argparse.Namespace) -> list[Start]:
    """Those of this part."""
    target_key = options.target_key if options.only else None
    starts, bad = open_starts(options.starts, target_key, options.skip_bad)
    if bad:
        print(f"{len(bad)} bad starts left out:\n{listed(bad)}")
    number, of = options.part or (1, 1)
    return starts[number - 1 :: of]


def _explore(options: argparse.Namespace) -> int:
    """Everything but packing; the number of reference calls."""
    folder, retry, workers = Folder(options.folder), options.retry, options.workers
    reference = None
    if options.calculator:
        reference = Reference(options.calculator[0], tuple(options.calculator[1:]))
        reference.open()  # errors before anything is relaxed
    starts = _starts(options)
    names = [start.name for start in starts]
    walk(starts, _settings(options), folder, workers, retry)
    if reference is not None:
        return label(names, reference, folder, workers, retry)
    if options.write:
        number = write_frames(names, folder, options.write)
        print(f"{number} frames without labels in {options.write}")
    else:
        now, known = read_labels(options.read, folder)
        print(f"{now} frames labelled from {options.read}; {known} in it had labels already")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; else ends with a message."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] not in ("explore", "pack", "-h", "--help"):
        words = ["explore", *words]
    options = _parser().parse_args(words)
    try:
        calls = 0 if options.action == "pack" else _explore(options)
        if options.action != "pack" and options.part:
            print(f"part done, {calls} reference calls. When all parts are: pack {options.folder}")
            return 0
        summary = pack(Folder(options.folder), options.largest_force)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"explore: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("explore: interrupted; the same command goes on from here") from None
    summary.show(calls, options.largest_force)
    for sid, reason in list(summary.failed.items())[:10]:
        print(f"  {sid} has no label: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
