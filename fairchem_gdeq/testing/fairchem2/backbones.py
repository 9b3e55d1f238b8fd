"""Small random models of every family of fairchem 2, with direct forces and with those of an energy.

Used by ``tests/fairchem2`` and, with ``backbone_checks``, by ``python -m benchmarks.backbones``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
from fairchem.core.units.mlip_unit.mlip_unit import Task

from fairchem_gdeq.testing.fairchem2 import small

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


def _conserving(backbone: dict, head: str, **changes: Any) -> Spec:
    """Its forces are the gradient of the energy; it has a stress too, as released models do."""
    changes = {"direct_forces": False, "regress_stress": True} | changes
    heads = {"forces": {"module": head, "wrap_property": False}}
    return Spec({"backbone": backbone | changes, "heads": heads})


def _conserving_moe(wrapper: str = "DatasetSpecificMoEWrapper", merge: bool = False) -> Spec:
    spec = _moe(wrapper, merge, direct_forces=False, regress_stress=True)
    head = {"module": UMA + "escn_moe." + wrapper, "head_cls": UMA + "escn_md.MLP_EFS_Head"}
    head |= {"dataset_names": ["oc20", "si"], "head_kwargs": {"wrap_property": False}}
    return Spec(spec.config | {"heads": {"efs": head}}, spec.task, merge)


BACKBONES = {
    "eSEN direct (OC25)": _spec(ESEN, ESEN_HEADS),
    "eSEN direct, checkpointed": _spec(ESEN, ESEN_HEADS, activation_checkpointing=True),
    "eSCN-MD, s2 and grid": _spec(ESEN, ESEN_HEADS, act_type="s2", ff_type="grid", mmax=1),
    "UMA, mixture of experts": _moe(),
    "UMA, mixture, checkpointed": _moe(activation_checkpointing=True),
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
    "AllScAIP, table too narrow": _spec(ALLSCAIP, ALLSCAIP_HEADS, use_padding=True, knn_pad_size=7),
    "AllScAIP, no node path": _spec(ALLSCAIP, ALLSCAIP_HEADS, use_node_path=False),
    "eSEN, conserving": _conserving(ESEN, UMA + "escn_md.MLP_EFS_Head"),
    "UMA, conserving": _conserving_moe(),
    "UMA, conserving, one head per data set": _conserving_moe("DatasetSpecificSingleHeadWrapper"),
    "UMA, conserving, merged": _conserving_moe(merge=True),
    "EScAIP, conserving": _conserving(ESCAIP, "EScAIP_grad_energy_force_stress_head"),
    "EScAIP, conserving, padded": _conserving(
        ESCAIP, "EScAIP_grad_energy_force_stress_head", use_padding=True
    ),
    "AllScAIP, conserving": _conserving(ALLSCAIP, "AllScAIP_grad_energy_force_stress_head"),
    "RelaxNet, conserving": Spec(small.RELAXNET),
    "ADAPT": Spec(small.ADAPT),
    "ResMLP": Spec(small.RESMLP),
}


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
