"""What a run has seen so far: one entry per step and per validated epoch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.comparison import End, Scored, compare, warn_of_few
from fairchem_gdeq.training.in_use import naming, whole_file

STEPS = "history.jsonl"
STATE = "gdeq_state.pt"  # beside a checkpoint: what fairchem's own has no place for

MOST_DIVERGED = 0.05  # share of the validation structures, beyond the base's

# Which epoch is reported and exported: one that validation says is better than the base, with an
# interval; the one of lowest validation score, however little below the base's; or the last, whatever
# validation says.
KEEP = ("better", "lowest", "last")


class History:
    """Steps are lines of a file beside the checkpoints, which hold the rest.

    Attributes:
        last: log of the latest step, None before the first.
        epochs: validation scores, with the epoch's number under ``epoch``, under ``ends`` what is
            compared of each structure (row, Delta Q, diverged), and under ``against_base`` what
            ``comparison.Comparison`` says.
        base: validation scores of the base, once they have been measured.
        keep: one of ``KEEP``.
        kept: the entry of ``epochs`` that the saved model is of, None: it is the base. It stands for its
            epoch also where that was repeated.
    """

    def __init__(self, keep: str = "better") -> None:
        """Without a file, steps are not kept but for the last.

        Raises:
            ValueError: an unknown ``keep``.
        """
        if keep not in KEEP:
            raise ValueError(f"unknown keep {keep!r}: choose one of {', '.join(KEEP)}")
        self.keep = keep
        self.last: dict[str, float] | None = None
        self.epochs: list[dict[str, Any]] = []
        self.base: dict[str, float] | None = None
        self.kept: dict[str, Any] | None = None
        self._base_ends: list[End] | None = None
        self._path: Path | None = None

    def open(self, folder: Path, done: int, first: int = 0) -> None:
        """Keep the steps in ``folder/history.jsonl``, and of those there the ``done`` first of the run.

        Later ones, by their ``train/step``, were taken after the checkpoint and are taken again.
        One process alone may open a file.

        Args:
            folder: of the file.
            done: number of steps that the checkpoint has seen.
            first: number of the run's first step.
        """
        path = folder / STEPS
        found = _read(path) if path.is_file() else []
        kept = [step for step in found if step["train/step"] < first + done]
        if len(kept) < done:
            logging.warning(
                f"{path} has {len(kept)} steps, and the checkpoint is of {done} steps: tables and "
                "pictures will miss the others"
            )
        self._write(path, kept)

    def take_over(self, folder: Path, steps: list[dict[str, float]]) -> None:
        """As ``open``, with the steps that a checkpoint from before the file holds itself."""
        self._write(folder / STEPS, steps)

    def _write(self, path: Path, steps: list[dict[str, float]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_text("".join(json.dumps(step) + "\n" for step in steps))
        self._path, self.last = path, steps[-1] if steps else None

    def add_step(self, log: dict[str, float]) -> None:
        """The log of an optimizer step."""
        self.last = log
        if self._path is not None:
            with naming(self._path), self._path.open("a") as file:
                file.write(json.dumps(log) + "\n")

    @property
    def steps(self) -> list[dict[str, float]]:
        """Logs of all steps, as the file has them now."""
        if self._path is None:
            return []
        return _read(self._path)

    @property
    def knows_base(self) -> bool:
        """Whether there is something that epochs can be compared with."""
        return self._base_ends is not None

    def begin_with_another(self) -> None:
        """Go on with the model of another run, whose epochs are no choice: their models are elsewhere."""
        logging.info(
            "the run goes on from another one's checkpoint: that model is kept until an epoch is better"
        )
        self.epochs, self.kept = [], None

    def set_base(self, scores: dict[str, float], records: Sequence[Scored]) -> None:
        """Validation of the untrained model, which competes as epoch 0."""
        if self.keep == "better":
            warn_of_few(len(records))
        self.base = scores
        self._base_ends = [End(r.row, r.delta_q, r.diverged) for r in records]

    def add_epoch(
        self, epoch: float, scores: dict[str, float], records: Sequence[Scored], basin: Basin
    ) -> None:
        """Scores of an epoch; a repeat after a resume replaces what was there."""
        self.epochs = [e for e in self.epochs if e["epoch"] != epoch]
        ends = [[r.row, r.delta_q, r.diverged] for r in records]
        entry: dict[str, Any] = {"epoch": epoch, **scores, "ends": ends}
        if self._diverges(entry):
            logging.warning(
                f"epoch {epoch:g}: {scores['diverged']:.0%} of the validation structures diverged, so it "
                "is not chosen"
            )
        if self._base_ends is not None:
            found = compare(self._base_ends, records, basin)
            logging.info(f"validation of epoch {epoch:g} against the base, {found}")
            entry["against_base"] = found.state()
        self.epochs.append(entry)

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch that ``keep`` asks for, the earliest of equals; None: the base is kept."""
        if self.keep == "last":
            return self.epochs[-1] if self.epochs else None
        epochs = self.epochs
        if self.kept is not None:
            others = [e for e in epochs if e["epoch"] != self.kept["epoch"]]
            epochs = [*others, self.kept]
        compared = [e for e in epochs if "against_base" in e and not self._diverges(e)]
        if self.keep == "better":
            good = [e for e in compared if e["against_base"]["verdict"] == "better"]
        else:
            good = [e for e in compared if e["against_base"]["log_change"] < 0]
        return min(good, key=lambda e: e["against_base"]["log_change"]) if good else None

    def _diverges(self, epoch: dict[str, Any]) -> bool:
        """Whether so many more structures diverge than with the base that its scores say little."""
        before = (self.base or {}).get("diverged", 0.0)
        return bool(epoch.get("diverged", 0.0) > before + MOST_DIVERGED)

    @property
    def outcome(self) -> str:
        """One sentence: which epoch is reported, and why."""
        if self.keep == "last":
            return "reported: the last epoch, without a look at validation"
        if self.best is not None:
            found = self.best["against_base"]
            return (
                f"reported: epoch {self.best['epoch']:g}, on validation {found['verdict']} (log(1 + dQ) "
                f"{found['log_change']:+.3f}, {found['confidence']:.0%} {found['log_low']:+.3f} to "
                f"{found['log_high']:+.3f}; {found['better']} nearer, {found['worse']} farther)"
            )
        return "reported: the base, since no epoch was better on validation"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        ends = None if self._base_ends is None else [tuple(end) for end in self._base_ends]
        return {"epochs": self.epochs, "base": self.base, "base_ends": ends}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``; checkpoints of version 0.1 do not hold the base's ends."""
        self.epochs, self.base = list(state["epochs"]), state["base"]
        ends = state.get("base_ends")
        self._base_ends = [End(*end) for end in ends] if ends else None


def require_some_end(records: Sequence[Scored], alpha: float) -> None:
    """Refuse to train where every validation structure diverges with the base.

    Args:
        records: of the base.
        alpha: the operator's step, Angstrom per (eV/Angstrom).

    Raises:
        ValueError: says how many there are, and what to change.
    """
    if records and all(record.diverged for record in records):
        raise ValueError(
            f"all {len(records)} validation structures diverged with the base, at alpha={alpha:g}: "
            "expected some that end, or nothing can be learnt. Lower alpha, or take another base"
        )


def _read(path: Path) -> list[dict[str, float]]:
    """The steps of a file, without lines that a kill has cut short or something else has damaged."""
    steps = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            step = json.loads(line)
        except json.JSONDecodeError:
            step = None
        if isinstance(step, dict) and "train/step" in step:
            steps.append(step)
        else:
            logging.warning(f"{path}: line {number}, which is no whole step, is left out")
    return steps
