"""The section ``forces`` in the ``task`` of a fairchem 1 config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairchem_gdeq.fairchem1.held_frames import HeldFrames
from fairchem_gdeq.fairchem1.replay import ForceReplay
from fairchem_gdeq.training.frame_checks import NO_FORCES, given_settings


@dataclass(frozen=True)
class ForceSettings:
    """What the section says; its values are checked also where ``src`` is null.

    Attributes:
        src: where forces to train on come from, as ``given_settings``.
        format: of all frames, as ``ForceReplay``.
        batch_size: as there.
        lambda_forces, limit, updates, alone: as ``ReplaySettings``; None is their default.
        val: folder (or folders) of frames held out, for the force error in the table.
    """

    src: str | Sequence[str] | None = None
    format: str = "ase_db"
    batch_size: int | None = None
    lambda_forces: float | None = None
    limit: float | None = None
    updates: int | None = None
    alone: float | None = None
    val: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        _ = self.replay  # refuses what cannot be meant

    @property
    def replay(self) -> ForceReplay | None:
        """What is trained on beside the signal; None where there is nothing.

        Raises:
            ValueError: as ``given_settings`` and ``ForceReplay``.
        """
        names = ("lambda_forces", "limit", "updates", "alone")
        chosen = given_settings(self.src, {name: getattr(self, name) for name in names})
        found = ForceReplay(
            self.src or NO_FORCES,
            format=self.format,
            batch_size=self.batch_size,
            **(chosen or {}),  # type: ignore[arg-type]
        )
        return None if chosen is None else found

    @property
    def held(self) -> HeldFrames | None:
        """What force errors are measured on; None where there is nothing."""
        return None if self.val is None else HeldFrames(self.val, self.format)
