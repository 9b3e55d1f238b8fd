"""Small random models of every family of fairchem 1, and structures for them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, hcp0001
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from torch import nn
from torch_geometric.data import Batch, Data

EQUIFORMER = {
    "use_pbc": True,
    "otf_graph": True,
    "max_neighbors": 40,
    "max_radius": 4.5,
    "num_layers": 2,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "lmax_list": [3],
    "mmax_list": [2],
    "grid_resolution": 14,
    "edge_channels": 8,
}
EQUIFORMER_HEADS = {
    "energy": {"module": "equiformerV2_scalar_head"},
    "forces": {"module": "equiformerV2_vector_head"},
}
DENS_HEADS = {
    "energy": {"module": "eqV2_DeNS_scalar_head"},
    "forces": {"module": "eqV2_DeNS_vector_head"},
}
ESCN = {
    "use_pbc": True,
    "otf_graph": True,
    "max_neighbors": 40,
    "cutoff": 4.5,
    "num_layers": 2,
    "lmax_list": [3],
    "mmax_list": [2],
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "num_sphere_samples": 32,
    "distance_resolution": 0.1,
    "resolution": 14,
}
ESCN_HEADS = {"energy": {"module": "escn_energy_head"}, "forces": {"module": "escn_force_head"}}
ESEN = {
    "sphere_channels": 8,
    "lmax": 2,
    "mmax": 2,
    "otf_graph": True,
    "max_neighbors": 40,
    "use_pbc": True,
    "cutoff": 4.5,
    "edge_channels": 8,
    "num_distance_basis": 16,
    "hidden_channels": 8,
    "grid_resolution": 14,
}
ESEN_HEADS = {
    "energy": {"module": "esen_mlp_energy_head"},
    "forces": {"module": "esen_linear_force_head"},
}
GEMNET = {
    "num_spherical": 3,
    "num_radial": 8,
    "num_blocks": 2,
    "emb_size_atom": 8,
    "emb_size_edge": 8,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "cutoff": 4.5,
    "max_neighbors": 12,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"},
    "extensive": True,
    "otf_graph": True,
    "use_pbc": True,
    "regress_forces": True,
    "direct_forces": True,
}
GEMNET_OC = GEMNET | {
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 4,
    "emb_size_quad_in": 4,
    "emb_size_quad_out": 4,
    "emb_size_aint_in": 4,
    "emb_size_aint_out": 4,
    "emb_size_sbf": 4,
    "num_output_afteratom": 1,
    "cutoff_qint": 3.8,
    "cutoff_aeaint": 4.2,
    "cutoff_aint": 5.5,
    "max_neighbors_qint": 5,
    "max_neighbors_aeaint": 9,
    "max_neighbors_aint": 60,
    "sbf": {"name": "legendre_outer"},
    "forces_coupled": False,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "num_global_out_layers": 1,
    "qint_tags": [1, 2],
}
GEMNET_OC_HEADS = {
    "energy": {"module": "gemnet_oc_energy_and_grad_force_head", "num_global_out_layers": 1},
    "forces": {"module": "gemnet_oc_force_head", "num_global_out_layers": 1},
}
GEMNET_T = GEMNET | {"emb_size_trip": 4, "emb_size_bil_trip": 4}
SCN = {
    "use_pbc": True,
    "otf_graph": True,
    "max_num_neighbors": 16,
    "cutoff": 4.5,
    "num_interactions": 2,
    "lmax": 4,
    "mmax": 1,
    "num_bands": 2,
    "num_resolutions": 2,
    "sphere_channels": 8,
    "sphere_channels_reduce": 8,
    "hidden_channels": 8,
    "num_sphere_samples": 32,
    "num_basis_functions": 8,
    "distance_resolution": 0.1,
}
PAINN = {
    "hidden_channels": 16,
    "num_layers": 2,
    "num_rbf": 16,
    "cutoff": 4.5,
    "max_neighbors": 12,
    "otf_graph": True,
    "use_pbc": True,
    "direct_forces": True,
}

# It has no direct forces, nor a switch for them.
SCHNET = {
    "hidden_channels": 16,
    "num_filters": 16,
    "num_interactions": 2,
    "num_gaussians": 20,
    "cutoff": 4.5,
    "otf_graph": True,
    "use_pbc": True,
    "regress_forces": True,
}


def _hydra(backbone: str, config: dict, heads: dict, **changes: Any) -> dict[str, Any]:
    return {
        "model": "hydra",
        "backbone": {"model": backbone, **config, **changes},
        "heads": heads,
        "pass_through_head_outputs": True,
    }


def _whole(model: str, config: dict, **changes: Any) -> dict[str, Any]:
    return {"model": model, **config, **changes}


BACKBONES = {
    "EquiformerV2": _hydra("equiformer_v2_backbone", EQUIFORMER, EQUIFORMER_HEADS),
    "EquiformerV2, grid MLP, shared embeddings": _hydra(
        *("equiformer_v2_backbone", EQUIFORMER, EQUIFORMER_HEADS),
        **{"use_grid_mlp": True, "use_sep_s2_act": False, "use_attn_renorm": False},
        **{"share_atom_edge_embedding": True, "use_m_share_rad": True},
    ),
    "EquiformerV2, checkpointed": _hydra(
        "equiformer_v2_backbone", EQUIFORMER, EQUIFORMER_HEADS, activation_checkpoint=True
    ),
    "EquiformerV2, in one piece": _whole("equiformer_v2", EQUIFORMER),
    "EquiformerV2, DeNS": _hydra("equiformer_v2_dens_backbone", EQUIFORMER, DENS_HEADS),
    "eSCN": _hydra("escn_backbone", ESCN, ESCN_HEADS),
    "eSCN, in one piece": _whole("escn", ESCN),
    "eSEN": _hydra("esen_backbone", ESEN, ESEN_HEADS),
    "eSEN, gates, Bessel, envelope, checkpointed": _hydra(
        *("esen_backbone", ESEN, ESEN_HEADS),
        **{"act_type": "gate", "mlp_type": "spectral", "distance_function": "bessel"},
        **{"use_envelope": True, "activation_checkpointing": True, "mmax": 1},
    ),
    "eSEN, DeNS": _hydra(
        "esen_backbone_dens", ESEN, {"forces": {"module": "esen_linear_force_head_dens"}}
    ),
    "SCN": _whole("scn", SCN),
    "GemNet-OC": _hydra("gemnet_oc_backbone", GEMNET_OC, GEMNET_OC_HEADS),
    "GemNet-OC, in one piece, coupled": _whole("gemnet_oc", GEMNET_OC, forces_coupled=True),
    "GemNet-OC, triplets and quadruplets": _whole(
        *("gemnet_oc", GEMNET_OC),
        **{"atom_edge_interaction": False, "edge_atom_interaction": False},
        **{"atom_interaction": False},
    ),
    "GemNet-OC, triplets": _whole(
        *("gemnet_oc", GEMNET_OC),
        **{"atom_edge_interaction": False, "edge_atom_interaction": False},
        **{"atom_interaction": False, "quad_interaction": False},
    ),
    "GemNet-dT": _whole("gemnet_t", GEMNET_T),
    "GemNet-dT, heads": _hydra(
        "gemnet_t_backbone", GEMNET_T, {"forces": {"module": "gemnet_t_force_head"}}
    ),
    "PaiNN": _whole("painn", PAINN),
    "PaiNN, heads": _hydra("painn_backbone", PAINN, {"forces": {"module": "painn_force_head"}}),
    "eSEN, conserving": _hydra(
        *("esen_backbone", ESEN, {"efs": {"module": "esen_mlp_efs_head"}}),
        **{"direct_forces": False, "regress_stress": True},
    ),
    "eSEN, DeNS, conserving": _hydra(
        "esen_backbone_dens",
        ESEN,
        {"efs": {"module": "esen_mlp_efs_head_dens"}},
        direct_forces=False,
    ),
    "GemNet-T, conserving": _whole("gemnet_t", GEMNET_T, direct_forces=False),
    "PaiNN, conserving": _whole("painn", PAINN, direct_forces=False),
    "SchNet": _whole("schnet", SCHNET),
}


def build(config: dict[str, Any]) -> nn.Module:
    """A model as fairchem 1's trainers make it, in evaluation mode."""
    setup_imports()
    config = copy.deepcopy(config)
    return registry.get_model_class(config.pop("model"))(**config).eval()


def model(name: str, double: bool = False, seed: int = 0) -> nn.Module:
    """The random small model of a name in ``BACKBONES``."""
    torch.manual_seed(seed)
    built = build(BACKBONES[name])
    # Fresh models are nearly linear in places, and an eSCN or SCN has hardly any forces.
    noise = 0.3 if name.startswith(("eSCN", "SCN")) else 0.1
    for parameter in built.parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            parameter.data += noise * torch.randn_like(parameter)
    return built.double() if double else built.float()


def slab(seed: int = 0, layers: int = 2, width: int = 2, vacuum: float = 4.0) -> Atoms:
    """Oxygen on titanium, rattled, all atoms inside the cell."""
    atoms = hcp0001("Ti", (width, 1, layers), vacuum=vacuum)
    add_adsorbate(atoms, "O", 1.3, "ontop")
    atoms.set_tags(
        [
            2 if number == 8 else int(z > 5)
            for number, z in zip(atoms.numbers, atoms.positions[:, 2], strict=True)
        ]
    )
    atoms.pbc = True
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
    atoms.positions += 0.1 * atoms.cell.sum(axis=0) * [1, 1, 0]
    atoms.wrap()
    return atoms


def slabs(count: int = 2) -> list[Atoms]:
    """Rattled slabs of two sizes in turns."""
    return [slab(seed, 2 + seed % 2, 2 - seed % 2) for seed in range(count)]


def structures(name: str) -> list[Atoms]:
    """What finite differences are taken on; SCN makes its grids anew in every forward pass."""
    return [slab(width=1)] if name.startswith("SCN") else slabs()


def batch(structures: list[Atoms], double: bool = False) -> Batch:
    """As fairchem 1's data sets and collater give it, with a target and other things beside."""
    dtype = torch.float64 if double else torch.float32
    out = []
    for i, atoms in enumerate(structures):
        out.append(
            Data(
                pos=torch.tensor(atoms.positions, dtype=dtype),
                cell=torch.tensor(np.array(atoms.cell), dtype=dtype)[None],
                atomic_numbers=torch.tensor(atoms.numbers, dtype=dtype),
                natoms=len(atoms),
                tags=torch.tensor(atoms.get_tags()),
                fixed=torch.zeros(len(atoms), dtype=dtype),
                pos_relaxed=torch.tensor(atoms.positions, dtype=dtype),
                y_relaxed=0.0,
                sid=f"s{i}",
            )
        )
    return Batch.from_data_list(out)
