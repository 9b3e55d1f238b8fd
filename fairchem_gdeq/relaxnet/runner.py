"""The runner of RelaxNet: the modes of ``GDEQRunner`` with the ODE in the place of relaxations."""

from __future__ import annotations

from typing import Any, NoReturn

from fairchem_gdeq.evaluation.metric import add_metrics
from fairchem_gdeq.fairchem2.runner import GDEQRunner
from fairchem_gdeq.relaxnet.held import HeldTrajectories
from fairchem_gdeq.relaxnet.metrics import PATHS
from fairchem_gdeq.relaxnet.scoring import ODEScoring


class RelaxNetRunner(GDEQRunner):
    """Trains, validates and predicts. The base of its table is the untrained model."""

    def __init__(self, **settings: Any) -> None:
        """As ``GDEQRunner``; ``held_frames`` is a ``held.HeldTrajectories``."""
        add_metrics(PATHS)
        super().__init__(**settings)

    def _check_frames(self) -> None:
        """The held trajectories are opened now, so that what is wrong with them is said before the run.

        Raises:
            FileNotFoundError, BadRows, ValueError: as ``FramesDataset``.
        """
        if isinstance(self.held_frames, HeldTrajectories):
            _ = self.held_frames.trajectories

    def diagnose(self) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        _refuse("diagnose", "whether tuning through relaxations can help a potential")

    def audit(self) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        _refuse("audit", "what tuning has cost a potential")

    def _scoring(self, split: str) -> ODEScoring:
        plain = super()._scoring(split)
        return ODEScoring(plain.split, plain.field_of, plain.tasks_of)


def _refuse(mode: str, question: str) -> NoReturn:
    raise ValueError(
        f"--mode {mode} asks {question}, and RelaxNet is trained from random weights: choose train, "
        "validate or predict"
    )
