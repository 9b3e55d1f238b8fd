"""The IS2RS task of fairchem 2: a model and its tasks in place of a force field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from fairchem_gdeq.relax.deprecated import current_settings

__all__ = ["IS2RS", "Relaxer"]


def Relaxer(**settings: Any) -> CurrentRelaxer:
    """``fairchem_gdeq.relax.Relaxer``, with its settings as configs of version 0.1 give them."""
    return CurrentRelaxer(**current_settings(settings))


@registry.register_task("is2rs")
@dataclass(frozen=True)
class IS2RS(RelaxationTask):
    """``RelaxationTask`` of fairchem 2's models."""

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
