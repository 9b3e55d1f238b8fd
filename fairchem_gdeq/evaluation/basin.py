"""When a relaxed structure counts as having captured the right basin."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_DELTA_Q = 3.0  # amu^0.5 Angstrom: the papers' 300 summed over about 100 structures


@dataclass(frozen=True)
class Basin:
    """When a relaxed structure counts as having captured the right basin.

    Both criteria are reported, each by itself. The defaults are such that hardly any unrelaxed
    start of the silicon set counts as captured.

    Attributes:
        delta_q: Delta Q below this, amu^0.5 Angstrom.
        displacement: largest free-atom distance from the target below this, Angstrom.
    """

    delta_q: float = 2.0
    displacement: float = 0.3
