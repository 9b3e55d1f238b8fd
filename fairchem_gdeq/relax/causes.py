"""Why a structure has no equilibrium to learn from or to score."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

SHORTEST = 0.5  # Angstrom; the shortest bond there is, of hydrogen, has 0.74


class Cause(IntEnum):
    """What went wrong with a structure; from ``COLLAPSED`` on it has diverged: it is nowhere."""

    NONE = 0
    OUT_OF_STEPS = 1  # max_steps were not enough
    OSCILLATES = 2  # nor were they, and the largest force got no lower in the second half of them
    COLLAPSED = 3  # two atoms are nearer than SHORTEST
    EXPLODED = 4  # a force, a step or the way as a whole is longer than any sound one
    NOT_FINITE = 5  # so, by a number that is NaN or infinite
    OUT_OF_MEMORY = 6  # it does not fit even alone

    @property
    def key(self) -> str:
        """Its share of the structures in scores."""
        return self.name.lower()

    @property
    def step_key(self) -> str:
        """The same in the log of a step."""
        return f"train/{self.key}"

    @property
    def words(self) -> str:
        """As tables and logs say it."""
        return self.key.replace("_", " ")

    @classmethod
    def of(cls, key: str) -> Cause:
        """That of a key.

        Raises:
            KeyError: there is none.
        """
        return cls[key.upper()]


def has_diverged(cause: Tensor) -> Tensor:
    """Whether a structure is nowhere [s] bool, by its cause [s]."""
    return cause >= Cause.COLLAPSED


def cause_of_length(longest: Tensor) -> Tensor:
    """The cause [s] of a length [s] that is out of all bounds."""
    finite = longest.isfinite()
    return torch.where(finite, int(Cause.EXPLODED), int(Cause.NOT_FINITE)).to(torch.int8)


def cause_of_steps(steps: Tensor, lowest_at: Tensor) -> Tensor:
    """The cause [s] where ``steps`` [s] were not enough; the force was lowest after ``lowest_at`` [s]."""
    stuck = 2 * lowest_at < steps
    return torch.where(stuck, int(Cause.OSCILLATES), int(Cause.OUT_OF_STEPS)).to(torch.int8)


def or_collapsed(cause: Tensor, shortest: Tensor) -> Tensor:
    """The cause [s], or where a structure has not diverged and is too short [s] (Angstrom), that."""
    found = ~has_diverged(cause) & (shortest < SHORTEST)
    return torch.where(found, int(Cause.COLLAPSED), cause).to(torch.int8)
