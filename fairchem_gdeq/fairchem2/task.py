"""The IS2RS task of fairchem 2: a model and its tasks in place of a force field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.common.registry import registry
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import Tensor

from fairchem_gdeq.evaluation.records import Record
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.relax import Operator
from fairchem_gdeq.relax import Relaxer as CurrentRelaxer
from fairchem_gdeq.relax.decoder import StepDecoder
from fairchem_gdeq.relax.deprecated import current_settings

__all__ = ["IS2RS", "Relaxer"]


def Relaxer(**settings: Any) -> CurrentRelaxer:
    """``fairchem_gdeq.relax.Relaxer``, with its settings as configs of version 0.1 give them."""
    return CurrentRelaxer(**current_settings(settings))


@registry.register_task("is2rs")
@dataclass(frozen=True)
class IS2RS(RelaxationTask):
    """``RelaxationTask`` of fairchem 2's models."""

    @property
    def without_decoder(self) -> IS2RS:
        """The same with alpha itself, which a decoder begins as."""
        return replace(self, descent=replace(self.descent, decoder=None))

    def with_learnt(self, state: Mapping[str, Any]) -> IS2RS:
        """The same with the step that the trainer's file beside a checkpoint has."""
        descent, weights = self.descent, state.get("decoder")
        if weights is not None:
            decoder = StepDecoder(len(weights["query"])).requires_grad_(False)
            decoder.load_state_dict(weights)
            descent = replace(descent, decoder=decoder.to(get_device_for_local_rank()))
        return replace(self, alpha=float(state["alpha"]), descent=descent)

    def operator(
        self,
        model: HydraModel,
        tasks: list[Task],
        batch: AtomicData,
        alpha: Tensor | None = None,
    ) -> Operator:
        """G with its graph frozen at the batch's positions."""
        return self.operator_of(HydraForceField.frozen(model, tasks, batch), batch, alpha)

    def relax(
        self, model: HydraModel, tasks: list[Task], batch: AtomicData, alpha: Tensor | None = None
    ) -> tuple[list[Record], Tensor]:
        """``relax_with`` a fresh graph at every step; none is built at X_0 that nothing reads."""
        return self.relax_with(HydraForceField.unfrozen(model, tasks, batch), batch, alpha)
