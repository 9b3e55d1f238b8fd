"""Small real models of fairchem 1, their checkpoints and data sets, for the tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.db import connect
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.modules.scaling.scale_factor import ScaleFactor
from fairchem.core.preprocessing import AtomsToGraphs
from numpy.typing import NDArray
from torch import nn

from fairchem_gdeq.testing import pyg

EQUIFORMER = {
    "name": "equiformer_v2",
    "otf_graph": True,
    "max_neighbors": 20,
    "max_radius": 4.0,
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 8,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "lmax_list": [1],
    "mmax_list": [1],
    "grid_resolution": 8,
    "edge_channels": 8,
    "num_distance_basis": 16,
    "alpha_drop": 0.1,
}
GEMNET = {
    "name": "gemnet_oc",
    "num_spherical": 3,
    "num_radial": 8,
    "num_blocks": 1,
    "emb_size_atom": 8,
    "emb_size_edge": 8,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 4,
    "emb_size_quad_in": 4,
    "emb_size_quad_out": 4,
    "emb_size_aint_in": 4,
    "emb_size_aint_out": 4,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_sbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "num_output_afteratom": 1,
    "cutoff": 4.0,
    "max_neighbors": 12,
    "max_neighbors_qint": 4,
    "max_neighbors_aeaint": 8,
    "max_neighbors_aint": 30,
    "direct_forces": True,
    "otf_graph": True,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "qint_tags": [1, 2],
}
MODELS = {"equiformer_v2": EQUIFORMER, "gemnet_oc": GEMNET}


def model(kind: str, seed: int = 0, config: dict[str, Any] | None = None) -> nn.Module:
    """A random model of a kind in ``MODELS`` or of a config, its scale factors fitted to one."""
    setup_imports()
    torch.manual_seed(seed)
    config = dict(config or MODELS[kind])
    built = registry.get_model_class(config.pop("name"))(**config).eval()
    for module in built.modules():
        if isinstance(module, ScaleFactor):
            module.set_(1.0)
    return built


def forces(model: nn.Module, atoms: Atoms) -> NDArray:
    """What a model itself says of a structure, without a normalizer [n, 3]."""
    data = data_list_collater([AtomsToGraphs(r_edges=False).convert(atoms)], otf_graph=True)
    with torch.no_grad():
        return model(data)["forces"].numpy()


def checkpoint(
    path: Path,
    kind: str,
    seed: int = 0,
    average: bool = False,
    config: dict[str, Any] | None = None,
) -> None:
    """A checkpoint as fairchem's trainer saves it; its normalizer does something.

    With ``average``, as ``checkpoint.pt``: the last weights are zero, the averaged ones the model's.
    """
    built = model(kind, seed, config)
    content: dict[str, Any] = {
        "state_dict": built.state_dict(),
        "normalizers": {"forces": Normalizer(0.0, 1.5).state_dict()},
        "elementrefs": {},
        "config": {
            "task": {},
            "trainer": "ocp",
            "model": config or MODELS[kind],
            "dataset": {"src": "data"},
            "optim": {},
            "outputs": {"energy": {"level": "system"}, "forces": forces_output()},
            "loss_functions": [{"forces": {"fn": "l2mae", "coefficient": 1}}],
            "evaluation_metrics": {"primary_metric": "forces_mae"},
        },
        "val_metrics": None,
        "amp": None,
        "epoch": 7,
        "step": 700,
    }
    if average:
        shadow = [p.detach().clone() for p in built.parameters() if p.requires_grad]
        state = {"decay": 0.9, "num_updates": None, "collected_params": []}
        content["ema"] = state | {"shadow_params": shadow}
        for p in built.parameters():
            if p.requires_grad:
                p.data.zero_()
        content["state_dict"] = built.state_dict()
    torch.save(content, path)


def forces_output() -> dict[str, Any]:
    """The output section of forces."""
    return {
        "level": "atom",
        "irrep_dim": 1,
        "train_on_free_atoms": True,
        "eval_on_free_atoms": True,
    }


def write_data(
    folder: Path, counts: dict[str, int], sids: dict[str, list[str]] | None = None
) -> None:
    """IS2RS splits of slabs in the project's row format, called train0, train1, ... or by ``sids``."""
    for shift, (split, count) in enumerate(counts.items()):
        (folder / split).mkdir(parents=True)
        slabs = [pyg.slab(10 * shift + i) for i in range(count)]
        with connect(folder / split / "data.aselmdb", type="aselmdb") as database:
            for i, atoms in enumerate(slabs):
                target = atoms.info.pop("pos_relaxed")
                sid = sids[split][i] if sids else f"{split}{i}"
                database.write(atoms, data={"sid": sid, "pos_relaxed": target})
        np.savez(folder / split / "metadata.npz", natoms=np.array([len(a) for a in slabs]))


def config(folder: Path, kind: str) -> dict[str, Any]:
    """The keys of a short run on ``write_data``'s splits that our shared config leaves open."""
    return {
        "model": MODELS[kind],
        "task": {
            "base": str(folder / f"{kind}.pt"),
            "run_id": "run",
            "horizon": 2,
            "eval_max_atoms": 60,
            "relaxer": {"max_steps": 5},
            "settings": {
                "max_steps": 5,
                "fmax": 10.0,
                "adjoint": {"name": "gmres", "max_vjps": 5, "tol": 0.9},
            },
        },
        "dataset": {split: {"src": str(folder / split)} for split in ("train", "val", "test")},
        "optim": {
            "batch_size": 2,
            "max_epochs": 2,
            "lr_initial": 1e-4,
            "scheduler": "CosineAnnealingLR",
            "T_max": 4,
        },
    }
