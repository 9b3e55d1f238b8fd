"""What an audit looks at, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fairchem_gdeq.relax.settings import require_not_negative


@dataclass(frozen=True)
class NVE:
    """Short runs at constant energy.

    Attributes:
        runs: how many, each of another structure.
        steps: of each.
        fs: length of a step, fs.
        kelvin: temperature to which the run should settle, K.
    """

    runs: int = 6
    steps: int = 200
    fs: float = 1.0
    kelvin: float = 300.0

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a number that cannot be meant; says which.
        """
        require_not_negative(runs=self.runs, kelvin=self.kelvin)
        if self.steps < 1 or not self.fs > 0:
            raise ValueError(
                f"audit.nve: steps={self.steps}, fs={self.fs}: expected at least one step, of a "
                "positive length"
            )


@dataclass(frozen=True)
class Audit:
    """How base and tuned model are compared beyond the task that was trained on.

    Attributes:
        dataset: the name by which the models know their data.
        structures: how many of the split are relaxed, taken at random; as many of the second domain.
        frames: folder (or folders) of frames with forces; None: there are none.
        most_frames: how many of them are looked at, at random.
        second: folder (or folders) of IS2RS rows of another domain; None: there is none.
        nve: short runs at constant energy.
    """

    dataset: str
    structures: int = 24
    frames: str | Sequence[str] | None = None
    most_frames: int = 200
    second: str | Sequence[str] | None = None
    nve: NVE = field(default_factory=NVE)

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: no structures, or a negative number of frames.
        """
        require_not_negative(most_frames=self.most_frames)
        if self.structures < 1:
            raise ValueError(f"audit.structures={self.structures}: expected at least one")
