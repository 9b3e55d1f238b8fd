"""``python -m benchmarks.study``."""

from __future__ import annotations

import argparse
from pathlib import Path

import benchmarks.study
from benchmarks.study import again, pairs
from benchmarks.study.docs import renew
from benchmarks.study.outcomes import rows_of
from benchmarks.study.pictures import draw
from benchmarks.study.running import run_all
from benchmarks.study.showing import SPLITS, markdown, write_csv
from benchmarks.study.tables import Table, read_tables


def show(table: Table, split: str, folder: Path) -> None:
    """Print a table; write its numbers and its picture."""
    rows = list(rows_of(table, split))
    print(markdown(table, rows, split))
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture = (folder / f"{table.name}_{split}.{kind}" for kind in ("csv", "png"))
    write_csv(rows, numbers)
    draw(table, rows, picture)
    print(f"\nnumbers: {numbers}\npicture: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=benchmarks.study.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    tables = read_tables()
    run = actions.add_parser("run", help="train what is not kept yet, and show")
    run.add_argument("--seeds", type=int, nargs="+", help="default: those of the table")
    run.add_argument("--arms", nargs="+", help="default: those of the table")
    run.add_argument("--points", nargs="+", help="default: those of the table")
    run.add_argument("--jobs", type=int, default=1, help="runs at a time")
    shown = actions.add_parser("show", help="Markdown, CSV and a picture")
    second = actions.add_parser("again", help="make one run of a table again, drawn by chance")
    second.add_argument("--draw", type=int, default=0, help="another number draws another run")
    for action in (run, shown, second):
        action.add_argument("table", choices=tables)
        action.add_argument("--folder", type=Path, default=Path("runs/study"), help="of all of it")
    for action in (run, shown):
        action.add_argument("--split", choices=SPLITS, default="test", help="shown")
    compare = actions.add_parser("compare", help="two rows or runs, structure by structure")
    compare.add_argument("first", help="TABLE/ARM, TABLE/ARM_POINT or TABLE/ARM_seedN")
    compare.add_argument("second", help="likewise; less than 0 is better than the first")
    actions.add_parser("docs", help="tables of docs/results.md and study.md, and pictures")
    arguments = parser.parse_args()
    if arguments.action == "docs":
        renew(tables)
        return
    if arguments.action == "compare":
        print(pairs.markdown(arguments.first, arguments.second, tables))
        return
    table = tables[arguments.table]
    if arguments.action != "show" and table.patch:
        raise SystemExit(
            f"{table.name}: its runs need {table.patch}, see benchmarks/patches/README.md. What they "
            f"ended with: python -m benchmarks.study show {table.name}"
        )
    if arguments.action == "again":
        again.make(again.drawn(table, arguments.draw), arguments.folder)
        print(again.markdown({table.name: table}))
        return
    if arguments.action == "run":
        wanted = [
            run
            for run in table.runs()
            if run.arm in (arguments.arms or table.every)
            and run.point in (arguments.points or table.points)
            and run.seed in (arguments.seeds or table.seeds)
        ]
        run_all(wanted, arguments.folder, arguments.jobs)
    show(table, arguments.split, arguments.folder)


if __name__ == "__main__":
    main()
