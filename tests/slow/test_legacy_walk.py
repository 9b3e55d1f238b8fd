"""OC20's old format, LMDB to leaderboard's file, as typed: a thousand entries, a hundred scored."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from fairchem_gdeq.data.convert import convert
from fairchem_gdeq.data.rows import TARGET
from fairchem_gdeq.testing import pyg
from tests.fairchem2.running import ROOT
from tests.fairchem2.test_oc_configs import fairchem

pytestmark = pytest.mark.slow

ENTRIES, SCORED, FEW = 1000, 100, 5
SPLITS = {  # rows of each, and whether they have targets
    "train": (ENTRIES, True),
    "val_id": (FEW, True),
    "val_ood_both": (SCORED, True),
    "test_id": (SCORED, False),
    "test_ood_ads": (FEW, False),
    "test_ood_cat": (FEW, False),
    "test_ood_both": (FEW, False),
}
CONFIG = "oc20/gdeq_esen.yml"
OPTIONS = (
    f"base={ROOT}/data/slabs/base/esen.pt",
    "dataset=oc25",
    "job.device_type=CPU",
    "max_atoms=52",  # four structures
    "val_structures=1.0",
    "horizon=1",
    "relaxer.max_steps=1",
    "runner.train_eval_unit.signal.max_steps=3",
)


def module(name, *arguments):
    """``python -m name arguments``: what it printed."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(folder, mode, *options):
    """``fairchem -c configs/oc20/gdeq_esen.yml --mode MODE``: what it printed."""
    arguments = ("--mode", mode, f"data={folder / 'oc20'}", *OPTIONS, *options)
    code, out, err = fairchem(CONFIG, folder, *arguments)
    assert code == 0, err[-3000:]
    return out


def test_a_thousand_entries(tmp_path):
    old, new = tmp_path / "is2re", tmp_path / "oc20"
    slabs = [pyg.slab(i) for i in range(ENTRIES)]
    for split, (count, _) in SPLITS.items():
        rows = [pyg.pyg1(pyg.fields(atoms, 100 + i)) for i, atoms in enumerate(slabs[:count])]
        (old / split).mkdir(parents=True)
        pyg.write(old / split / "data.lmdb", rows)

    text = module("fairchem_gdeq.data.convert", "inspect", old / "train")
    assert re.search(r"\b1,?000\b", text)
    module("fairchem_gdeq.data.convert", old / "train", new / "train", "--workers", 2)
    for split in list(SPLITS)[1:]:  # in this process: another would import fairchem for each
        convert(old / split, new / split, target_key=TARGET if SPLITS[split][1] else None)
    assert len(np.load(new / "train" / "metadata.npz")["natoms"]) == ENTRIES

    part = ["train_structures=0.004", "test_structures=0.05"]
    assert "tuned" in run(tmp_path, "train", *part)  # a step: four structures of the thousand
    results = tmp_path / "runs" / "gdeq_seed0" / "results"
    assert (results / "best" / "inference_ckpt.pt").is_file()

    run(tmp_path, "validate")
    scores = json.loads((results / "validate" / "val_ood_both.json").read_text())["scores"]
    assert all(scores[row]["structures"] == SCORED for row in ("unrelaxed X_0", "base", "tuned"))

    files = []
    for split in (name for name, (_, has_target) in SPLITS.items() if not has_target):
        run(tmp_path, "predict", f"test={split}", "test_target_key=null")
        option = split.replace("test", "-").replace("_", "-")
        files += [option, results / "predictions" / f"{split}.npz"]
    joined = tmp_path / "submission.npz"
    script = "fairchem.core.scripts.make_submission_file"
    module(script, "--dataset", "OC20", *files, "--out-path", joined)

    stored = np.load(joined)
    assert sorted(map(int, stored["id_ids"])) == list(range(100, 100 + SCORED))
    predicted = np.split(stored["id_pos"], stored["id_chunk_idx"])
    for sid, positions in zip(stored["id_ids"], predicted, strict=True):
        start = slabs[int(sid) - 100]
        fixed = start.constraints[0].index
        assert positions.shape == start.positions.shape
        np.testing.assert_allclose(positions[fixed], start.positions[fixed], atol=1e-5)
        assert np.abs(positions - start.positions).max() > 1e-4
