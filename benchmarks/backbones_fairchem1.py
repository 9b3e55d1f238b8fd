"""The table of fairchem-core 1.10: ``python -m benchmarks.backbones_fairchem1 [WORD ...]``.

Tiny random models on two rattled slabs; with words, only the backbones whose names contain one.
"""

from __future__ import annotations

import sys

from benchmarks.tables import print_rows
from fairchem_gdeq.testing.fairchem1 import backbone_checks, backbones

HEADER = (
    *("backbone", "forces at X_0", "forces 0.15 Angstrom on", "own spread"),
    *("VJP error as shipped", "VJP error", "VJP / forward"),
)


def cells(name: str) -> str:
    """What is measured of a backbone."""
    row = backbone_checks.measure(name)
    numbers = (row.start, row.moved, row.spread, row.shipped, row.derivative)
    return " | ".join(f"{number:.0e}" for number in numbers) + f" | {row.cost:.1f}"


if __name__ == "__main__":
    print_rows(HEADER, backbones.BACKBONES, sys.argv[1:], cells)
