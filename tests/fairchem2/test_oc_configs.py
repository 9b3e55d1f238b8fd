"""The configs of released checkpoints as typed: their formats in, clear messages where one is missing."""

import copy
import json

import numpy as np
import pytest
import torch
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit

from fairchem_gdeq.data import convert
from fairchem_gdeq.testing import pyg
from fairchem_gdeq.testing.fairchem2 import backbones, small
from tests import commands
from tests.fairchem2.running import ROOT

CHEAP = [
    "epochs=1",
    "horizon=2",
    "relaxer.max_steps=4",
    "runner.train_eval_unit.signal.max_steps=4",
    "keep=last",
]
CPU = "job.device_type=CPU"


def fairchem(config, folder, *options, env=None):
    """``fairchem -c configs/CONFIG`` in a folder; exit status, stdout, stderr."""
    run_dir = f"job.run_dir={folder / 'runs'}"
    path = ROOT / "configs" / config
    return commands.fairchem("-c", path, run_dir, *options, env=env, cwd=folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """An eSEN-direct checkpoint as released for OC25: energy and forces of the data set oc25."""
    path = tmp_path_factory.mktemp("released") / "esen.pt"
    config = backbones.BACKBONES["eSEN direct (OC25)"].config
    config = config | {"backbone": config["backbone"] | {"dataset_list": ["oc25"]}}
    tasks = [small.task_config(kind, kind, "oc25") for kind in ("energy", "forces")]
    tasks[1]["normalizer"]["rmsd"] = 1.5
    small.write_checkpoint(path, config, tasks)
    return path


@pytest.fixture(scope="module")
def slabs(tmp_path_factory):
    """Legacy LMDBs of small slabs, converted as the head of the OC20 config says."""
    folder = tmp_path_factory.mktemp("slabs")
    for split, sids in {
        "train": [1, 2],
        "val_id": [3],
        "val_ood_both": [4],
        "val_ood": [4],
    }.items():
        rows = [pyg.pyg1(pyg.fields(pyg.slab(sid), sid)) for sid in sids]
        (folder / "lmdb" / split).mkdir(parents=True)
        pyg.write(folder / "lmdb" / split / "data.lmdb", rows)
        assert convert.main([str(folder / "lmdb" / split), str(folder / split)]) == 0
    for split, other in (("val", "val_id"), ("test", "val_ood_both")):
        (folder / split).symlink_to(folder / other)
    return folder


def test_titanium_with_a_checkpoint_in_the_released_format(released, slabs, tmp_path):
    options = ["--mode", "train", f"data={slabs}", CPU, *CHEAP]
    where = {"ESEN_OC25_DIRECT": str(released)}
    code, out, err = fairchem("oc25/gdeq_ti.yml", tmp_path, *options, env=where)
    assert code == 0, err[-3000:]
    assert "unrelaxed X_0" in out and "tuned" in out
    best = tmp_path / "runs" / "ti_gdeq_seed0" / "results" / "best" / "inference_ckpt.pt"
    tuned, base = (torch.load(path, weights_only=False) for path in (best, released))
    assert tuned.tasks_config == base.tasks_config
    weights = [c.model_state_dict["output_heads.forces.linear.weight"] for c in (tuned, base)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("kind", ["bulk", pytest.param("adsorbate", marks=pytest.mark.slow)])
def test_uma_with_a_checkpoint_in_the_released_format(kind, slabs, tmp_path):
    """Tasks of several data sets, a stress head, charge and spin, and forces that stay a gradient."""
    config = copy.deepcopy(backbones.BACKBONES["UMA, conserving"].config)
    config["backbone"]["dataset_list"] = config["heads"]["efs"]["dataset_names"] = ["oc20", "omat"]
    tasks = [
        small.task_config(f"{name}_{each}", each, name)
        for name in ("oc20", "omat")
        for each in ("energy", "forces", "stress")
    ]
    base = tmp_path / "uma.pt"
    small.write_checkpoint(base, config, tasks)
    options = ["--mode", "train", f"data={slabs}", CPU, *CHEAP]
    code, out, err = fairchem(f"uma/gdeq_{kind}.yml", tmp_path, *options, env={"UMA": str(base)})
    assert code == 0, err[-3000:]
    assert "unrelaxed X_0" in out and "tuned" in out
    dataset = {"bulk": "omat", "adsorbate": "oc20"}[kind]
    results = tmp_path / "runs" / f"{dataset}_gdeq_seed0" / "results"
    tuned = torch.load(results / "best" / "inference_ckpt.pt", weights_only=False)
    assert tuned.tasks_config == tasks  # of all data sets, as they were
    unit = load_predict_unit(results / "best" / "inference_ckpt.pt", "batch", device="cpu")
    atoms = small.silicon(1)[0]
    atoms.calc = FAIRChemCalculator(unit, task_name=dataset)
    assert atoms.get_stress().shape == (6,) and np.abs(atoms.get_forces()).max() > 0


@pytest.mark.parametrize("name", ["oc20", pytest.param("oc22", marks=pytest.mark.slow)])
def test_full_sets(name, released, slabs, tmp_path):
    options = [f"data={slabs}", f"base={released}", "dataset=oc25", "val_structures=1.0", CPU]
    config = f"{name}/gdeq_esen.yml"
    code, out, err = fairchem(config, tmp_path, "--mode", "train", *options, *CHEAP)
    assert code == 0, err[-3000:]
    results = tmp_path / "runs" / "gdeq_seed0" / "results"
    held_out = "val_ood_both" if name == "oc20" else "val_ood"
    assert list(json.loads((results / f"{held_out}.json").read_text())["scores"]) == [
        "unrelaxed X_0",
        "base",
        "tuned",
    ]
    predict = ["--mode", "predict", "test=val_id", "test_target_key=null"]
    code, out, err = fairchem(config, tmp_path, *predict, *options, *CHEAP)
    assert code == 0, err[-3000:]
    assert np.load(results / "predictions" / "val_id.npz")["ids"].tolist() == ["3"]


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("oc25/gdeq_ti.yml", [f"data={ROOT}/data/slabs"], "https://huggingface.co/facebook/OC25"),
        ("oc25/gdeq_ti.yml", ["base=BASE", "data=nowhere"], "data set nowhere/train"),
        ("oc20/gdeq_esen.yml", ["base=BASE"], "facebookresearch.github.io/fairchem/oc20"),
        ("oc22/gdeq_esen.yml", ["base=BASE"], "facebookresearch.github.io/fairchem/oc22"),
        (
            "oc20/gdeq_esen.yml",
            ["base=BASE", "data=SLABS", "val_structures=1.0", CPU],
            "data sets oc25, not for 'oc20'",
        ),
        (
            "oc20/gdeq_esen.yml",
            ["base=BASE", "data=SLABS", "dataset=oc25", CPU],
            "'is2rs.val': 0.02} of its 1 rows: raise",
        ),
    ],
)
def test_what_is_missing_is_said(config, options, expected, released, slabs, tmp_path):
    values = {"BASE": str(released), "SLABS": str(slabs)}
    for name, value in values.items():
        options = [option.replace(name, value) for option in options]
    code, _, err = fairchem(config, tmp_path, "--mode", "train", *options)
    assert code != 0 and expected in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(released, slabs, tmp_path):
    options = ["--mode", "train", f"base={released}", f"data={slabs}"]
    code, _, err = fairchem("oc25/gdeq_ti.yml", tmp_path, *options)
    assert code != 0 and err.strip().endswith("add job.device_type=CPU")
