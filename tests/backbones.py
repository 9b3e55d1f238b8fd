"""Small random models of every direct-force family of fairchem 2, and the checks that they must pass.

Used by ``tests/fairchem2/test_backbones.py`` and by ``python -m benchmarks.backbones``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
from fairchem.core.units.mlip_unit.mlip_unit import Task
from torch.overrides import TorchFunctionMode

from fairchem_gdeq.fairchem2.fields import HydraForceField
from fairchem_gdeq.fairchem2.graphs import EdgeList
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax.guidance import guidance_by_sweep
from fairchem_gdeq.relax.objective import delta_q
from tests import small

UMA = "fairchem.core.models.uma."
ESEN = small.ESEN["backbone"] | {"lmax": 2, "mmax": 2, "num_layers": 2}
ESEN_HEADS = {
    "energy": {"module": UMA + "escn_md.MLP_Energy_Head"},
    "forces": {"module": UMA + "escn_md.Linear_Force_Head"},
}


def _moe_heads(wrapper: str) -> dict[str, Any]:
    names = {"dataset_names": ["oc20", "si"]}
    return {
        f"{kind}head": {"module": UMA + "escn_moe." + wrapper, "head_cls": UMA + "escn_md." + head}
        | names
        for kind, head in (("energy", "Linear_Energy_Head"), ("force", "Linear_Force_Head"))
    }


MOE = ESEN | {
    "model": UMA + "escn_moe.eSCNMDMoeBackbone",
    "num_experts": 4,
    "use_composition_embedding": True,
    "use_dataset_embedding": True,
    "dataset_list": ["oc20", "si"],
    "chg_spin_emb_type": "pos_emb",
    "charge_balanced_channels": [0],
    "spin_balanced_channels": [1],
    "mmax": 1,
}
ESCAIP = {
    "model": "EScAIP_backbone",
    "regress_forces": True,
    "direct_forces": True,
    "hidden_size": 16,
    "num_layers": 2,
    "use_compile": False,
    "use_padding": False,
    "use_pbc": True,
    "max_num_elements": 100,
    "max_atoms": 40,
    "max_batch_size": 4,
    "max_radius": 4.2,
    "knn_k": 12,
    "knn_soft": True,
    "knn_sigmoid_scale": 0.2,
    "knn_lse_scale": 0.1,
    "knn_use_low_mem": False,
    "knn_pad_size": 30,
    "atten_name": "math",
    "atten_num_heads": 2,
    "atom_embedding_size": 8,
    "node_direction_embedding_size": 8,
    "node_direction_expansion_size": 4,
    "edge_distance_expansion_size": 16,
    "edge_distance_embedding_size": 16,
    "freequency_list": [2, 2, 4],
}
ESCAIP_HEADS = {
    "energy": {"module": "EScAIP_energy_head"},
    "forces": {"module": "EScAIP_direct_force_head"},
}
ALLSCAIP = {
    key: ESCAIP[key]
    for key in (
        *("regress_forces", "direct_forces", "hidden_size", "num_layers", "use_compile"),
        *("use_padding", "max_num_elements", "max_atoms", "max_batch_size", "max_radius", "knn_k"),
        *("atten_name", "atten_num_heads", "node_direction_expansion_size", "freequency_list"),
        *("knn_pad_size", "edge_distance_expansion_size"),
    )
} | {"model": "AllScAIP_backbone", "edge_direction_expansion_size": 4, "attn_num_freq": 8}
ALLSCAIP_HEADS = {
    "energy": {"module": "AllScAIP_energy_head"},
    "forces": {"module": "AllScAIP_direct_force_head"},
}


@dataclass(frozen=True)
class Spec:
    """One backbone configuration.

    Attributes:
        config: the keyword arguments of ``HydraModel``.
        task: name of the force task.
        merge: merge the mixture of experts as fairchem does for inference.
    """

    config: dict[str, Any]
    task: str = "forces"
    merge: bool = field(default=False)


def _spec(backbone: dict, heads: dict, **changes: Any) -> Spec:
    return Spec({"backbone": backbone | changes, "heads": heads})


def _moe(wrapper: str = "DatasetSpecificMoEWrapper", merge: bool = False, **changes: Any) -> Spec:
    config = {"backbone": MOE | changes, "heads": _moe_heads(wrapper)}
    # fairchem opens no mixture of experts without a model_id: UMA 1.0 had none.
    config |= {"pass_through_head_outputs": True, "model_id": "tiny"}
    return Spec(config, "si_forces", merge)


BACKBONES = {
    "eSEN direct (OC25)": _spec(ESEN, ESEN_HEADS),
    "eSEN direct, checkpointed": _spec(ESEN, ESEN_HEADS, activation_checkpointing=True),
    "eSCN-MD, s2 and grid": _spec(ESEN, ESEN_HEADS, act_type="s2", ff_type="grid", mmax=1),
    "UMA, mixture of experts": _moe(),
    "UMA, one head per data set": _moe("DatasetSpecificSingleHeadWrapper", num_experts=0),
    "UMA, merged": _moe(merge=True),
    "EScAIP, soft kNN": _spec(ESCAIP, ESCAIP_HEADS),
    "EScAIP, low-memory soft kNN": _spec(ESCAIP, ESCAIP_HEADS, knn_use_low_mem=True),
    "EScAIP, hard kNN": _spec(ESCAIP, ESCAIP_HEADS, knn_soft=False),
    "EScAIP, angle bias": _spec(
        *(ESCAIP, ESCAIP_HEADS),
        **{"use_angle_embedding": "bias", "angle_expansion_size": 4, "angle_embedding_size": 2},
    ),
    "EScAIP, angle scalar, gates, padded": _spec(
        *(ESCAIP, ESCAIP_HEADS),
        **{"use_angle_embedding": "scalar", "use_message_gate": True, "use_padding": True},
    ),
    "EScAIP, graph attention, padded": _spec(
        ESCAIP, ESCAIP_HEADS, use_graph_attention=True, use_padding=True
    ),
    "AllScAIP, low-memory soft kNN": _spec(ALLSCAIP, ALLSCAIP_HEADS),
    "AllScAIP, soft kNN": _spec(ALLSCAIP, ALLSCAIP_HEADS, knn_use_low_mem=False),
    "AllScAIP, hard kNN, padded": _spec(ALLSCAIP, ALLSCAIP_HEADS, knn_soft=False, use_padding=True),
    "AllScAIP, no node path": _spec(ALLSCAIP, ALLSCAIP_HEADS, use_node_path=False),
    "ADAPT": Spec(small.ADAPT),
    "ResMLP": Spec(small.RESMLP),
}


class _Double(TorchFunctionMode):
    """Float32 that is written out in fairchem's code becomes float64.

    EScAIP and AllScAIP round their features to float32 in the middle of the forward pass, which
    limits any difference quotient to about 1e-2. Nothing else is changed.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {key: widen(value) for key, value in (kwargs or {}).items()}
        return func(*map(widen, args), **kwargs)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Everything inside is computed in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


def tasks(name: str) -> list[Task]:
    """The force task of a spec."""
    (forces,) = small.tasks()
    forces.name = BACKBONES[name].task
    return [forces]


def model(name: str, double: bool, batch: AtomicData | None = None, seed: int = 0) -> HydraModel:
    """The random small model; ``batch`` is what a merged one is merged for."""
    spec = BACKBONES[name]
    torch.manual_seed(seed)
    built = HydraModel(**spec.config).eval()
    for parameter in built.parameters():
        # Fresh eSCN and EScAIP models are nearly linear in places; this makes them less so.
        if parameter.ndim > 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    built = built.double() if double else built.float()
    if spec.merge:
        assert batch is not None
        with torch.no_grad():
            built(batch.clone())
            built.prepare_for_inference(batch.clone(), InferenceSettings(merge_mole=True))
    return built


def structures(name: str, count: int = 2) -> list:
    """Rattled cells; a merged mixture serves one composition only."""
    if BACKBONES[name].merge:
        return [atoms for seed in range(count) for atoms in small.silicon(1, seed)]
    return small.silicon(count)


@dataclass(frozen=True)
class Row:
    """What one backbone scored.

    Attributes:
        forces: largest force difference from the unmodified model at X_0, over the largest force.
        spread: the same between two evaluations of the unmodified model, which rolls edge frames at
            random.
        derivative: relative error of the VJP against central differences, double precision.
        cost: time of one VJP with parameter gradients over that of one force evaluation, float32.
    """

    forces: float
    spread: float
    derivative: float
    cost: float


class _Rolls(TorchFunctionMode):
    """``torch.rand`` gives these numbers: the rolls of eSCN's edge frames, in turns."""

    def __init__(self, rolls: torch.Tensor) -> None:
        self.rolls = rolls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.rolls if func is torch.rand else func(*args, **(kwargs or {}))


def unmodified_forces(
    built: HydraModel, task: Task, batch: AtomicData, rolls: torch.Tensor | None = None
) -> torch.Tensor:
    """The model's own forces [n, 3], with nothing of ours in between; its random rolls if given."""
    chosen = contextlib.nullcontext() if rolls is None else _Rolls(rolls / (2 * torch.pi))
    with torch.no_grad(), chosen:
        return task.normalizer.denorm(built(batch.clone())[task.name]["forces"].view(-1, 3))


def force_differences(name: str, atoms: list | None = None) -> tuple[float, float]:
    """``Row.forces`` and ``Row.spread``, in single precision."""
    data = small.batch(structures(name) if atoms is None else atoms, double=False)
    built, (task,) = model(name, False, data), tasks(name)
    field = HydraForceField.freeze(built, [task], data)
    rolls = field.graphs.rolls(field.batch) if isinstance(field.graphs, EdgeList) else None
    plain = unmodified_forces(built, task, data, rolls)
    ours = field(data.pos).detach()
    again = [unmodified_forces(built, task, data) for _ in range(2)]
    pairs = ((ours, plain), again)
    return tuple(float((a - b).abs().max() / plain.abs().max()) for a, b in pairs)


def derivative_error(name: str, atoms: list | None = None, step: float = 1e-5) -> float:
    """``Row.derivative``: all components, of the part that the forces contribute."""
    with double_precision():
        data = small.batch(structures(name) if atoms is None else atoms)
        operator = IS2RS(alpha=1.0, cap=None).operator(model(name, True, data), tasks(name), data)
        lam = torch.randn(data.pos.shape, generator=torch.Generator().manual_seed(0))
        free = operator.structures.free[:, None]
        own = torch.where(free, lam, 0.0)
        analytic = operator.vjp(data.pos, lam) - own
        numeric = torch.zeros_like(lam)
        with torch.no_grad():
            for i in range(lam.numel()):
                e = torch.zeros(lam.numel())
                e[i] = step
                e = e.view_as(lam)
                change = operator.forces(data.pos + e) - operator.forces(data.pos - e)
                numeric.view(-1)[i] = (change * lam).sum() / (2 * step)
        numeric = torch.where(free, numeric, 0.0)
        return float((analytic - numeric).norm() / numeric.norm())


def cost(name: str, repeats: int = 5) -> float:
    """``Row.cost``: medians."""
    data = small.batch(structures(name), double=False)
    operator = IS2RS().operator(model(name, False, data), tasks(name), data)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for kept, run in zip(times, (_forward, _vjp), strict=True):
            started = time.perf_counter()
            run(operator, data.pos)
            kept.append(time.perf_counter() - started)
    forward, vjp = (sorted(kept[1:])[repeats // 2] for kept in times)
    return vjp / forward


def _forward(operator, positions):
    with torch.no_grad():
        operator(positions)


def _vjp(operator, positions):
    operator.vjp(positions, torch.ones_like(positions), accumulate=True)


def measure(name: str) -> Row:
    """One row of the table."""
    return Row(*force_differences(name), derivative_error(name), cost(name))


def frozen(name: str) -> str:
    """In a few words, what is constant while positions move."""
    data = small.batch(structures(name), double=False)
    graphs = HydraForceField.freeze(model(name, False, data), tasks(name), data).graphs
    if graphs is None:
        return "nothing: no neighbours"
    if isinstance(graphs, EdgeList):
        return "pairs, images, frame rolls"
    config = graphs.backbone
    parts = ["pairs", "images", "slots"]
    parts += [] if config.molecular_graph_cfg.knn_soft else ["ranks"]
    if graphs.all_pairs and config.global_cfg.use_node_path:
        parts.append("nearest images")
    return ", ".join(parts)


def two_steps(name: str) -> tuple[float, float]:
    """Mean Delta Q at X_K before and after two Adam steps on its own guidance gradient."""
    data = small.batch(structures(name), double=False)
    built = model(name, False, data)
    target = data.pos + 0.05 * torch.randn(data.pos.shape, generator=torch.manual_seed(1))
    operator = IS2RS(alpha=0.01).operator(built, tasks(name), data)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return delta_q(x, target, operator.structures, operator.pin)

    optimizer = torch.optim.Adam(built.parameters(), lr=3e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(guidance_by_sweep(operator, data.pos, 3, loss, 1.0)[2])
        reached = [p.grad for p in built.parameters() if p.grad is not None]
        assert reached and all(torch.isfinite(g).all() for g in reached)
        optimizer.step()
    return losses[0], losses[-1]
