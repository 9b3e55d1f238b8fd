"""Relax adsorbates on metal slabs on SevenNet-0 and pack them as IS2RS sets.

    python data/slabs/generate.py relax     # resumable: finished relaxations are kept
    python data/slabs/generate.py pack      # writes train/ ... here

Needs the ``data`` extra of the project (the ``sevenn`` package, which ships the weights).
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from systems import build, catalogue

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from sevennet import relax_all  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("relax",))
    parser.add_argument("--workers", type=int, default=2, help="one-threaded processes")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of trajectories")
    arguments = parser.parse_args()
    relax_all([(s.name, partial(build, s)) for s in catalogue()], arguments.work, arguments.workers)


if __name__ == "__main__":
    main()
