"""Tables of ``docs/results.md`` and ``docs/study.md``, made anew from what is kept.

A table stands between ``<!-- study TABLE SPLIT [ARM ...] -->`` and ``<!-- end -->``; with arms, it has
only those. That of runs made again stands between ``<!-- again -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.study import again
from benchmarks.study.outcomes import rows_of
from benchmarks.study.pictures import draw
from benchmarks.study.showing import markdown
from benchmarks.study.tables import Table

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "results.md", DOCS / "study.md")
AGAIN = re.compile(r"(<!-- again -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCK = re.compile(r"<!-- study ([^>]+) -->\n.*?<!-- end -->", re.DOTALL)


def renew(tables: Mapping[str, Table]) -> None:
    """Write the pages, and a picture of each of their tables that has points."""
    for page in PAGES:
        text = page.read_text()
        page.write_text(renewed(text, tables))
        for name in {block.split()[0] for block in BLOCK.findall(text)}:
            table = tables[name]
            if table.point:
                draw(table, list(rows_of(table, "test")), DOCS / f"{name}.png")


def renewed(text: str, tables: Mapping[str, Table]) -> str:
    """The page with its tables as they are made now.

    Raises:
        SystemExit: it names a table that there is not, or of which nothing is kept.
    """

    def block(found: re.Match[str]) -> str:
        name, split, *arms = found[1].split()
        if name not in tables:
            raise SystemExit(f"a page names the table {name}: there are {', '.join(tables)}")
        return f"<!-- study {found[1]} -->\n{made(tables[name], split, arms)}\n<!-- end -->"

    text = AGAIN.sub(lambda found: f"{found[1]}{again.markdown(tables)}\n{found[2]}", text)
    return BLOCK.sub(block, text)


def made(table: Table, split: str, arms: list[str]) -> str:
    """Markdown of a table."""
    rows = [row for row in rows_of(table, split) if not (arms and row.arm) or row.arm in arms]
    return markdown(table, rows, split)
