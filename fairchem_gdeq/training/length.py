"""How long a run is, and where in it: what goes on when it is made longer, or has other ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Length:
    """What shares of a run are of.

    Attributes:
        epochs: that the run was begun with. One that is made longer keeps the phases that it has had.
        steps: of an epoch; more ranks take fewer.
    """

    epochs: int
    steps: int

    @property
    def total(self) -> int:
        """Steps of the run as it was begun."""
        return self.epochs * self.steps

    def going_on(self, before: Length) -> Length:
        """This run's, of which a checkpoint says what it was."""
        return replace(self, epochs=before.epochs)

    def moved(self, steps: int, before: Length) -> int:
        """A number of steps of a checkpoint in those of now: as many structures, or a batch fewer."""
        return steps * self.steps // before.steps

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return asdict(self)
