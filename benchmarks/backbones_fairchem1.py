"""The table of fairchem-core 1.10: ``python -m benchmarks.backbones_fairchem1 [WORD ...]``.

Tiny random models on two rattled slabs; with words, only the backbones whose names contain one.
"""

from __future__ import annotations

import logging
import sys
import warnings

from tests.fairchem1 import backbone_checks, backbones

HEADER = (
    *("backbone", "forces at X_0", "forces 0.15 Angstrom on", "own spread"),
    *("VJP error as shipped", "VJP error", "VJP / forward"),
)


def main(words: list[str]) -> None:
    """Print the table in Markdown, one row as soon as it is known."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for name in backbones.BACKBONES:
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        row = backbone_checks.measure(name)
        numbers = (row.start, row.moved, row.spread, row.shipped, row.derivative)
        found = " | ".join(f"{number:.0e}" for number in numbers)
        print(f"| {name} | {found} | {row.cost:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
