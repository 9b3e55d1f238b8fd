"""Small real models, structures and data sets for the tests of the fairchem side."""

from __future__ import annotations

import numpy as np
import torch
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.db import connect
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task

from fairchem_gdeq.testing.frames import write_frames as write_frames

ESEN = {
    "backbone": {
        "model": "fairchem.core.models.uma.escn_md.eSCNMDBackbone",
        "max_num_elements": 100,
        "sphere_channels": 8,
        "hidden_channels": 8,
        "edge_channels": 8,
        "lmax": 1,
        "mmax": 1,
        "num_layers": 1,
        "num_distance_basis": 8,
        "cutoff": 4.2,
        "max_neighbors": 300,
        "otf_graph": True,
        "direct_forces": True,
        "regress_forces": True,
        "regress_stress": False,
        "always_use_pbc": False,
        "use_dataset_embedding": False,
        "dataset_list": ["si"],
        "chg_spin_emb_type": "rand_emb",
        "norm_type": "rms_norm_sh",
        "act_type": "gate",
        "ff_type": "spectral",
    },
    "heads": {"forces": {"module": "fairchem.core.models.uma.escn_md.Linear_Force_Head"}},
}
COORDINATE_HEAD = {
    "forces": {"module": "fairchem_gdeq.models.coordinates.ForceProjection"},
}
ADAPT = {
    "backbone": {
        "model": "fairchem_gdeq.models.adapt.ADAPTBackbone",
        "width": 16,
        "layers": 2,
        "heads": 2,
        "hidden": 32,
        "origin": 2.7,
        "scale": 2.0,
        "wavelengths": [5.4, 2.7],
    },
    "heads": COORDINATE_HEAD,
}
RESMLP = {
    "backbone": {
        "model": "fairchem_gdeq.models.resmlp.ResMLPBackbone",
        "max_atoms": 12,
        "hidden": 32,
        "layers": 3,
    },
    "heads": COORDINATE_HEAD,
}
RELAXNET = {
    "backbone": {
        "model": "fairchem_gdeq.models.relaxnet.RelaxNetBackbone",
        "channels": 8,
        "triplet_cutoff": 3.2,
        "radial_count": 4,
    },
    "heads": {"energy": {"module": "fairchem_gdeq.models.relaxnet.RelaxNetHead", "heads": 2}},
    "pass_through_head_outputs": True,
}
MODELS = {"esen": ESEN, "adapt": ADAPT, "resmlp": RESMLP, "relaxnet": RELAXNET}


def model(kind: str, double: bool = True, seed: int = 0) -> HydraModel:
    """A random small model of a kind in ``MODELS``."""
    torch.manual_seed(seed)
    built = HydraModel(**MODELS[kind]).eval()
    return built.double() if double else built.float()


def tasks() -> list[Task]:
    """The force task; its normalizer does something, so that forgetting it shows."""
    return [
        Task(
            name="forces",
            level="atom",
            property="forces",
            out_spec=OutputSpec(dim=[3], dtype="float32"),
            normalizer=Normalizer(mean=0.0, rmsd=1.5),
            datasets=["si"],
        )
    ]


def silicon(count: int = 3, seed: int = 0, fixed: tuple[int, ...] = ()) -> list:
    """Rattled 8-atom cells with 0, 1, 2, ... atoms removed and one germanium."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        atoms = bulk("Si", "diamond", a=5.463, cubic=True)
        atoms.positions += 0.683
        atoms.symbols[3] = "Ge"
        del atoms[list(range(7, 7 - i % 3, -1))]
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        if fixed:
            atoms.set_constraint(FixAtoms(list(fixed)))
        out.append(atoms)
    return out


def batch(structures: list, double: bool = True) -> AtomicData:
    """Flat batch of ASE structures."""
    dtype = torch.float64 if double else torch.float32
    rows = [
        AtomicData.from_ase(a, task_name="si", sid=f"s{i}", target_dtype=dtype)
        for i, a in enumerate(structures)
    ]
    out = atomicdata_list_to_batch(rows)
    out.row = torch.arange(len(rows))
    return out


def write_is2rs(folder, structures: list, seed: int = 1, sids: list[str] | None = None) -> None:
    """An IS2RS data set in the project's row format; targets are the perfect sites.

    Rows are called row0, row1, ... if ``sids`` does not say otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for i, atoms in enumerate(structures):
            target = atoms.positions + rng.normal(scale=0.05, size=atoms.positions.shape)
            sid = f"row{i}" if sids is None else sids[i]
            database.write(atoms, data={"sid": sid, "pos_relaxed": target})
    np.savez(folder / "metadata.npz", natoms=np.array([len(a) for a in structures]))


def task_config(name: str, kind: str = "forces", dataset: str = "si") -> dict:
    """A task as checkpoints and configs spell it; ``kind`` is ``forces``, ``energy`` or ``stress``."""
    dimension = {"forces": [3], "energy": [1], "stress": [1, 9]}[kind]
    units = "fairchem.core."
    return {
        "_target_": units + "units.mlip_unit.mlip_unit.Task",
        "name": name,
        "level": "atom" if kind == "forces" else "system",
        "property": kind,
        "out_spec": {"dim": dimension, "dtype": "float32"},
        "normalizer": {
            "_target_": units + "modules.normalization.normalizer.Normalizer",
            "mean": 0.0,
            "rmsd": 1.0,
        },
        "datasets": [dataset],
        "metrics": ["mae"],
    }


def checkpoint(path, kind: str = "esen", seed: int = 0) -> None:
    """An inference checkpoint of a random small model of a kind in ``MODELS``."""
    write_checkpoint(path, MODELS[kind], [task_config("forces")], seed)


def write_checkpoint(path, config: dict, tasks: list[dict], seed: int = 0) -> None:
    """An inference checkpoint of a random model, in fairchem's own format."""
    torch.manual_seed(seed)
    built = HydraModel(**config).eval().float()
    torch.save(
        MLIPInferenceCheckpoint(
            model_config={"_target_": "fairchem.core.models.base.HydraModel", **config},
            model_state_dict=built.state_dict(),
            ema_state_dict=torch.optim.swa_utils.AveragedModel(built).state_dict(),
            tasks_config=tasks,
        ),
        path,
    )
