"""What fairchem 2's predictor asks of a backbone, for one that it need not prepare or check."""

from __future__ import annotations

from typing import Any, Self

from fairchem.core.datasets.atomic_data import AtomicData


class PlainInference:
    """A backbone that is used for predictions as it is."""

    @classmethod
    def build_inference_settings(cls, settings: Any) -> dict[str, Any]:
        """No setting of fairchem's predictor concerns it."""
        return {}

    def get_default_untrained_tasks(
        self, checkpoint_tasks: Any, inference_settings: Any
    ) -> list[Any]:
        """None: it predicts what it was trained for."""
        return []

    def validate_tasks(self, dataset_to_tasks: dict[str, list[Any]]) -> None:
        """Any data set will do."""

    def prepare_for_inference(self, data: AtomicData, settings: Any) -> Self:
        """Nothing to merge."""
        return self

    def on_predict_check(self, data: AtomicData) -> None:
        """Nothing to check."""

    def validate_atoms_data(self, atoms: Any, task_name: str) -> None:
        """Charge and spin are not read."""
