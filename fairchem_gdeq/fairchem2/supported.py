"""Which models are fine-tuned exactly, and why the others are refused: all of it in this place."""

from __future__ import annotations

from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.models.uma.nn.execution_backends import ExecutionBackend
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch import nn

from fairchem_gdeq.fairchem2.conservative import is_conservative
from fairchem_gdeq.fairchem2.families import graphs_of


def require_exact(model: HydraModel) -> None:
    """Refuse a model whose Jacobian on a frozen graph would not be the derivative of its forces.

    Raises:
        ValueError: names the setting, says why, and which override helps.
    """
    graphs_of(model.backbone)
    backbone = model.backbone
    reasons = [*_edge_list_reasons(backbone), *_neighbour_list_reasons(backbone)]
    if is_conservative(model):
        reasons += _second_derivative_reasons(backbone)
    if reasons:
        raise ValueError(
            f"{type(backbone).__name__} cannot be differentiated exactly as configured:\n"
            + "\n".join(f"- {reason}" for reason in reasons)
        )


def element_limit(model: HydraModel) -> int | None:
    """The first atomic number that a model does not know; None where it does not say."""
    known = getattr(model.backbone, "max_num_elements", None)
    return known if isinstance(known, int) else None


def _edge_list_reasons(backbone: nn.Module) -> list[str]:
    reasons = []
    if getattr(backbone, "use_quaternion_wigner", True) is False:
        reasons.append(
            "use_quaternion_wigner: false: the derivative of its Euler angles is cut off for edges "
            "close to the y axis. Load it with overrides backbone.use_quaternion_wigner: true: the "
            "weights are the same, and so are the forces."
        )
    backend = getattr(backbone, "backend", None)
    if isinstance(backend, ExecutionBackend) and type(backend) is not ExecutionBackend:
        reasons.append(
            f"execution_mode with {type(backend).__name__}: it computes with copies of the weights, "
            "made for inference, which training does not reach. Load it with overrides "
            "backbone.execution_mode: general."
        )
    return reasons


def _neighbour_list_reasons(backbone: nn.Module) -> list[str]:
    graph = getattr(backbone, "molecular_graph_cfg", None)
    if graph is None:
        return []
    reasons = []
    if getattr(graph, "use_chunked_graph", False):
        reasons.append(
            "use_chunked_graph: true ranks each atom's neighbours among a set that changes with the "
            "positions, so forces jump even on frozen pairs. Load it with overrides "
            "backbone.use_chunked_graph: false."
        )
    if graph.distance_function == "silu":
        reasons.append(
            "distance_function: silu makes a new random linear layer in every forward pass: the "
            "model has no forces of its own."
        )
    if getattr(backbone.global_cfg, "single_system_no_padding", False):
        reasons.append(
            "single_system_no_padding: true lets the structures of a batch feel each other. Load it "
            "with overrides backbone.single_system_no_padding: false."
        )
    if getattr(backbone.global_cfg, "use_fp16_backbone", False):
        reasons.append(
            "use_fp16_backbone: true: with half-precision forces neither the fixed point nor its "
            "adjoint can be solved to a useful accuracy. Load it with overrides "
            "backbone.use_fp16_backbone: false."
        )
    return reasons


def _second_derivative_reasons(backbone: nn.Module) -> list[str]:
    attention = getattr(getattr(backbone, "gnn_cfg", None), "atten_name", "math")
    if attention == "math":
        return []
    reason = (
        f"atten_name: {attention} has no second derivative, and the forces are the gradient of the "
        "energy. Load it with overrides backbone.atten_name: math: the weights are the same, and so are "
        "the forces."
    )
    return [reason]


def dataset_names(batch: AtomicData) -> list[str] | None:
    """The data set of each structure, or None if the batch does not say.

    fairchem's concatenated data sets name what they give ``<data set>.<split>``.
    """
    if "dataset" in batch:
        return list(batch.dataset)
    if "dataset_name" in batch:
        return [name.partition(".")[0] for name in batch.dataset_name]
    return None


def require_dataset(model: HydraModel, task: Task, names: list[str] | None) -> None:
    """Refuse structures of data sets that the force task does not cover.

    UMA's heads return zero forces, silently, for structures of any other data set than the task's.

    Raises:
        ValueError: names the data sets of both.
    """
    reads = getattr(model.backbone, "use_dataset_embedding", False) or any(
        hasattr(head, "dataset_names") for head in model.output_heads.values()
    )
    if not reads or (names is not None and set(names) <= set(task.datasets)):
        return
    found = "of no named data set" if names is None else f"of data sets {sorted(set(names))}"
    raise ValueError(
        f"structures {found}, but the force task {task.name!r} is for {sorted(task.datasets)}, and "
        "this model treats data sets differently. Name the data set in dataset_configs as the model "
        "does, or choose the task of that data set."
    )
