"""A data set in equal parts, of which one is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fold:
    """One of some parts that are about equally large, or all the others.

    Rows of one name (sid) are in the same part, for they may be starts of one structure.

    Attributes:
        of: number of parts, at least 2.
        number: of the part that is held out, from 0.
        held: that part; false is all the others.
        seed: of the order in which names are dealt out.
    """

    of: int
    number: int
    held: bool
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of < 2 or not 0 <= self.number < self.of:
            raise ValueError(
                f"fold {self.number} of {self.of}: expected at least 2 folds, numbered from 0"
            )

    def choose(self, names: Sequence[str]) -> list[int]:
        """Places of the rows that belong to it, in their order.

        Args:
            names: of all rows.

        Raises:
            ValueError: there are fewer names than folds.
        """
        different = sorted(set(names))
        if len(different) < self.of:
            raise ValueError(
                f"{len(different)} structures of different names cannot be put into {self.of} folds"
            )
        order = np.random.default_rng(self.seed).permutation(len(different))
        part = {different[place]: turn % self.of for turn, place in enumerate(order)}
        return [i for i, name in enumerate(names) if (part[name] == self.number) == self.held]
