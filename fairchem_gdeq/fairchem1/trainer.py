"""The trainer ``gdeq``: fairchem 1's, with Algorithm 1 in place of its force-matching step."""

from __future__ import annotations

import time
from functools import cached_property, partial
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules.evaluator import Evaluator
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_gdeq.evaluation.metrics import summarise
from fairchem_gdeq.fairchem1.evaluating import BEST, EvaluatingTrainer
from fairchem_gdeq.fairchem1.fields import OCPForceField
from fairchem_gdeq.fairchem1.frame_checks import check_forces
from fairchem_gdeq.frozen.forward import full_precision
from fairchem_gdeq.relax import Operator, SignalReport
from fairchem_gdeq.training import steps
from fairchem_gdeq.training.damage import damage_of_file
from fairchem_gdeq.training.failing import Diverging, is_guided
from fairchem_gdeq.training.history import require_some_end
from fairchem_gdeq.training.memory import peak_mb, reset_peak
from fairchem_gdeq.training.ranks import from_the_first, gather
from fairchem_gdeq.training.replay import Replay, for_signal, optimize
from fairchem_gdeq.training.steps import Beside, Update

# Logged of each step; of the other numbers, fairchem logs running means.
EACH = ("train/grad_norm", "train/skipped_update", "train/seconds", "train/peak_memory_mb")


@registry.register_trainer("gdeq")
class GDEQTrainer(EvaluatingTrainer):
    """Fine-tunes a direct-force model through its own relaxations.

    The loop, logging, checkpoints, resume, EMA and ``--submit`` are fairchem's; the gradient is one
    of ``fairchem_gdeq.relax.signals``. What is saved names fairchem's own trainer ``ocp``.
    """

    replay: Replay | None = None  # forces beside the signal, once training starts

    @cached_property
    def diverging(self) -> Diverging:
        """What ends the run where too many structures diverge."""
        return Diverging(self.settings.most_diverged, is_guided(self.signal))

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """As fairchem's; what is done goes to the history beside the checkpoints.

        Raises:
            ValueError: a run goes on whose best model is gone or damaged.
        """
        begins = self._begins  # before this run has written anything
        if begins and self.step > 0:
            self.history.begin_with_another()
        if not begins and (reason := from_the_first(lambda: damage_of_file(self._folder / BEST))):
            raise ValueError(
                f"{self._folder / BEST}: expected the run's best model so far, found {reason}. Put it "
                "back; a copy of checkpoint.pt in its place is the latest model. Or remove "
                f"{self._folder} to begin anew"
            )
        if (forces := for_signal(self.signal, self.settings.forces.replay)) is not None:
            self.replay = forces.open(self, partial(self.field_of, self.base.model))
        check_forces(self, self.replay and self.replay.batches)
        if self.step == 0 and self._writes:
            self.history.open(self._folder, 0)
        if not self.history.knows_base and self.val_loader is not None:
            records = self.scoring("val").relaxed(self.base)
            require_some_end(records, self.is2rs.alpha)
            self.history.set_base(summarise(records, self.is2rs.basin), records)
        if begins:  # what is kept where no epoch is better
            self.save({}, checkpoint_file=BEST, training_state=False)
        super().train(disable_eval_tqdm)

    @property
    def _begins(self) -> bool:
        """Whether nothing of the run is there yet, also where it begins with another one's checkpoint."""
        own = self._folder / "checkpoint.pt"
        return self.is_debug or self.step == 0 or from_the_first(lambda: not own.is_file())

    def differentiate(self, batch: Batch) -> tuple[SignalReport, Operator]:
        """Add the training signal's gradient for one batch to the parameters' ``.grad``."""
        field = OCPForceField.frozen(self._unwrapped_model, batch, self._denorm)
        operator = self.is2rs.operator_of(field, batch)
        adjoints = self.adjoints if self.warm_start else None
        return steps.differentiate(self.signal, operator, batch, adjoints), operator

    def _update(self, count: int, beside: Beside | None = None) -> Update:
        """Average gradients over the structures of all ranks (``count`` here), clip, step, EMA."""
        return steps.update(
            self.model.parameters(),
            self.optimizer,
            count,
            clip=self.clip_grad_norm or float("inf"),
            beside=beside,
            rescale=self._divide_shared,
            ema=self.ema.update if self.ema else None,
        )

    # fairchem's loop calls these four, in this order

    def _forward(self, batch: Batch) -> dict[str, Any]:
        """In training: one step of the run, and its numbers.

        fairchem puts the model into training mode before each step; it goes back to evaluation mode,
        since every evaluation of a step must be the same map.
        """
        if not self.model.training:
            return super()._forward(batch)  # OCPTrainer.predict, as OCPCalculator calls it
        self.model.eval()
        reset_peak()
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.device)
        step, replay, total = self.step - 1, self.replay, self.epochs * len(self.train_loader)
        silent = replay is not None and replay.settings.without_signal(step, total)
        signal = partial(self.differentiate, batch)
        with full_precision(self.device):
            log = optimize(step, silent, batch, signal, self._update, replay)
        if "train/structures" in log:  # not where the step was of forces alone
            self.diverging.add(log)
        log["train/seconds"] = time.perf_counter() - started
        log["train/peak_memory_mb"] = max(gather([peak_mb()]))
        self._log = log
        return log

    def _compute_loss(self, out: dict[str, Any], batch: Batch) -> Tensor:
        """Eq. 5's value, or that of the forces where they are alone; the step is taken already."""
        if not out.keys() & {"train/loss"}:
            return super()._compute_loss(out, batch)
        return torch.tensor(out["train/loss"], device=self.device)

    def _compute_metrics(
        self,
        out: dict[str, Any],
        batch: Batch,
        evaluator: Evaluator,
        metrics: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The step's numbers in fairchem's running means; what is not known (NaN) is left out."""
        for key, value in out.items():
            if key not in ("train/loss", *EACH) and value == value:
                metrics = evaluator.update(key.removeprefix("train/"), value, metrics)
        return metrics

    def _backward(self, loss: Tensor) -> None:
        """The step, which is taken already, goes to history and log."""
        progress = {
            "train/step": self.step,
            "train/epoch": (self.step - 1) / len(self.train_loader),
            "train/lr": self.scheduler.get_lr(),
        }
        self.history.add_step(self._log | progress)
        if self.logger is not None:
            shown = {key.removeprefix("train/"): self._log[key] for key in EACH}
            self.logger.log(shown, step=self.step, split="train")

    def _divide_shared(self) -> None:
        """What fairchem does to the gradients of parameters that GemNet's blocks share."""
        for parameter, factor in getattr(self._unwrapped_model, "shared_parameters", []):
            if parameter.grad is not None:
                parameter.grad /= factor
