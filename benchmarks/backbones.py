"""The finite-difference table of all backbones: ``python -m benchmarks.backbones [WORD ...]``.

Tiny random models on two rattled cells; with words, only the backbones whose names contain one.
"""

from __future__ import annotations

import sys

from benchmarks.tables import print_rows
from fairchem_gdeq.testing.fairchem2 import backbone_checks, backbones

HEADER = ("backbone", "frozen", "forces at X_0", "own spread", "VJP error", "VJP / forward")


def cells(name: str) -> str:
    """What is measured of a backbone."""
    row = backbone_checks.measure(name)
    numbers = f"{row.forces:.0e} | {row.spread:.0e} | {row.derivative:.0e} | {row.cost:.1f}"
    return f"{backbone_checks.frozen(name)} | {numbers}"


if __name__ == "__main__":
    print_rows(HEADER, backbones.BACKBONES, sys.argv[1:], cells)
