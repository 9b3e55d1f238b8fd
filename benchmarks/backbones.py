"""The finite-difference table of all backbones: ``python -m benchmarks.backbones [WORD ...]``.

Tiny random models on two rattled cells; with words, only the backbones whose names contain one.
"""

from __future__ import annotations

import logging
import sys
import warnings

from tests import backbone_checks, backbones

HEADER = ("backbone", "frozen", "forces at X_0", "own spread", "VJP error", "VJP / forward")


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
        numbers = f"{row.forces:.0e} | {row.spread:.0e} | {row.derivative:.0e} | {row.cost:.1f}"
        print(f"| {name} | {backbone_checks.frozen(name)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
