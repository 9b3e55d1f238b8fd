"""Force training beside the signal, whatever fairchem the model is of: its settings, and a run's step.

Relaxations repair what was wrong, and a potential forgets what was right. Forces that are trained on in
the same step keep it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairchem_gdeq.evaluation.task import Batch
from fairchem_gdeq.frozen.drawing import drawing_from
from fairchem_gdeq.relax import Operator, Signal, SignalReport
from fairchem_gdeq.relax.signals import Direct, FTStatic
from fairchem_gdeq.training.ranks import gather
from fairchem_gdeq.training.steplog import describe
from fairchem_gdeq.training.steps import Beside, Update

BASE = "base"
LARGEST = 1e4  # eV/Angstrom; a component beyond that is an accident


@dataclass(frozen=True)
class ReplaySettings:
    """What is trained on beside the signal, and how much; a fairchem line adds how frames are opened.

    The gradient of a step is lambda_forces g_F + s g_S, with g_F that of fairchem's loss of a batch of
    forces, g_S that of the signal, and s = min(1, limit |lambda_forces g_F| / |g_S|).

    Attributes:
        src: folder (or folders) of frames with forces; or ``base``: forces of the untrained model, on
            the way from X_0 to X_K of the step's structures.
        lambda_forces: weight of the forces' loss.
        limit: longest gradient of the signal, in lengths of that of labelled frames.
        updates: optimizer steps on forces alone in each step of the run, before that of the signal.
        alone: share of the run, at its beginning, whose steps are of forces alone. A signal at the
            high rates that force training begins with does harm; at the low ones it ends with, good.
    """

    src: str | Sequence[str]
    _: KW_ONLY
    lambda_forces: float = 10.0
    limit: float = 1.0
    updates: int = 0
    alone: float = 0.0

    def __post_init__(self) -> None:
        self._at_least(lambda_forces=0, limit=0, updates=0)
        if not 0 <= self.alone <= 1:
            raise ValueError(f"forces.alone={self.alone}: expected a share of the run, from 0 to 1")
        if self.of_base and (self.updates or self.alone):
            raise ValueError(
                f"forces.updates={self.updates}, forces.alone={self.alone}: the base's own forces "
                "(forces.src=base) have nothing to teach without a signal. Name labelled frames with "
                "forces.src=FOLDER, or set both to 0"
            )

    def _at_least(self, **bounds: float) -> None:
        for name, least in bounds.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"forces.{name}={getattr(self, name)}: expected at least {least}")

    @property
    def of_base(self) -> bool:
        """Whether the labels are the base's own."""
        return self.src == BASE

    @property
    def longest(self) -> float:
        """The ``limit`` of frames. The base's own forces set none: the model starts with them, so that
        their gradient is zero at first, and a limit would keep it there.
        """
        return math.inf if self.of_base else self.limit

    @property
    def folders(self) -> list[str]:
        """Where labelled frames are."""
        return [self.src] if isinstance(self.src, str) else list(self.src)

    def without_signal(self, step: int, steps: int) -> bool:
        """Whether a step, counted from 0, of a run of so many is of forces alone."""
        return self.alone == 1 or step < round(self.alone * steps)  # also where it was made longer


S = TypeVar("S", bound=ReplaySettings)


def for_signal(signal: Signal, forces: S | None) -> S | None:
    """Force training as a signal has it beside it: alone for ``ft_static``, none for ``direct``.

    Raises:
        ValueError: ``ft_static`` without labelled frames, or ``direct`` with any forces.
    """
    if isinstance(signal, FTStatic):
        if forces is None or forces.of_base:
            said = "null or none" if forces is None else BASE
            raise ValueError(
                f"signal=ft_static trains on the forces of frames, and forces.src={said}: expected a "
                "folder of labelled frames"
            )
        return replace(forces, alone=1.0)
    if isinstance(signal, Direct) and forces is not None:
        raise ValueError(
            f"signal=direct makes the head of forces one of displacements, and forces.src={forces.src} "
            "would train it on forces. Switch them off with forces.src=none"
        )
    return forces


@dataclass(frozen=True)
class Replay:
    """Forces to train on.

    Attributes:
        settings: how much.
        batches: the batch of a number in the run, for a step's batch of structures and what its signal
            did with them (None where there is no signal); a resumed run asks for the same numbers.
        loss: fairchem's, of such a batch.
    """

    settings: ReplaySettings
    batches: Callable[[int, Any, SignalReport | None], Any]
    loss: Callable[[Any], Tensor]

    def differentiate(
        self, step: int, turn: int, batch: Batch, report: SignalReport | None, losses: list[float]
    ) -> None:
        """Add the weighted gradient of a batch of forces to ``.grad``, and its loss to the list.

        Models that draw random numbers (eSCN-type ones roll each edge's frame) draw those of the batch's
        number, so that a resumed run has the very gradient of one that was not interrupted.

        Args:
            step: of the run, counted from 0.
            turn: which batch of forces of the step it is.
            batch, report: as ``batches``.
            losses: those of the step.
        """
        number = step * (self.settings.updates + 1) + turn
        with drawing_from(number, batch.pos.device):
            loss = self.loss(self.batches(number, batch, report))
            (self.settings.lambda_forces * loss).backward()
        losses.append(float(loss.detach()))


def optimize(
    step: int,
    silent: bool,
    batch: Batch,
    differentiate: Callable[[], tuple[SignalReport, Operator]],
    update: Callable[[int, Beside | None], Update],
    replay: Replay | None = None,
) -> dict[str, float]:
    """A step of the run: some of the optimizer on forces alone, then one on the signal; its log.

    Args:
        step: counted from 0.
        silent: whether it is of forces alone (``ReplaySettings.without_signal``).
        batch: structures of the step.
        differentiate: adds the signal's gradient for them to ``.grad``.
        update: ``steps.update`` with the gradient there, by the number of structures of this rank.
        replay: forces beside the signal.
    """
    losses, alone = list[float](), 0
    if replay is not None:
        alone = replay.settings.updates + silent
        for turn in range(alone):
            replay.differentiate(step, turn, batch, None, losses)
            done = update(1, None)
    if silent:
        log = {"train/loss": fmean(gather(losses[-1:])), "train/signal_share": 0.0}
    else:
        report, operator = differentiate()
        beside = None
        if replay is not None:
            forces = partial(replay.differentiate, step, alone, batch, report, losses)
            beside = Beside(forces, replay.settings.longest)
        done = update(len(batch.natoms), beside)
        log = describe(report, operator)
        if log.get("train/diverged") == 1.0:
            logging.warning(
                f"all structures of step {step} diverged, so that it learns nothing from them: expected "
                "some that end. Lower alpha, or take another base"
            )
        if replay is not None:
            log["train/signal_share"] = done.share
    if losses:
        log["train/forces_loss"] = fmean(gather(losses))
    log["train/grad_norm"] = float(done.norm)
    log["train/skipped_update"] = float(not done.applied)
    return log


# ---- what batches are made of ------------------------------------------------------------------


def on_the_way(batch: Batch, report: SignalReport, number: int, seed: int) -> Tensor:
    """Positions [n, 3], Angstrom: each structure somewhere on the straight line from X_0 to X_K.

    Where, depends on the ``number`` of the batch in the run and on ``seed``. Atoms whose X_K is not
    finite stay at X_0.
    """
    place = np.random.default_rng([seed, number]).uniform(size=len(batch.natoms))
    share = torch.as_tensor(place, dtype=batch.pos.dtype, device=batch.pos.device)
    ends = torch.where(report.handoff.isfinite(), report.handoff, batch.pos)
    return batch.pos + share[batch.batch, None] * (ends - batch.pos)


def require_forces(frames: Iterable[tuple[object, Any]], folders: Sequence[str]) -> None:
    """Refuse frames without forces; fairchem would train on nothing, in silence.

    Args:
        frames: name and forces [n, 3] of each, None where it has none.
        folders: where they are from.

    Raises:
        ValueError: says which.
    """
    bad, count = [], 0
    for name, forces in frames:
        count += 1
        if forces is None or not bool(torch.isfinite(torch.as_tensor(forces)).all()):
            bad.append(name)
        elif (largest := float(torch.as_tensor(forces).abs().max())) > LARGEST:
            raise ValueError(
                f"frames {', '.join(folders)}: {name} has a force of {largest:.3g} eV/Angstrom: expected "
                f"at most {LARGEST:g}. Mend its unit, or leave it out"
            )
    if bad:
        raise ValueError(
            f"frames {', '.join(folders)}: {len(bad)} of {count} have no forces, or some that are "
            f"not finite, such as {bad[0]}. Expected forces in eV/Angstrom on every frame"
        )
