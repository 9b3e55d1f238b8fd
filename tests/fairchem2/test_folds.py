"""A recipe that is judged by folds."""

import json

import numpy as np
import pytest

from fairchem_gdeq import folds
from fairchem_gdeq.data.is2rs import IS2RSDataset
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.testing.fairchem2 import small
from tests.fairchem2.running import command


def test_a_data_set_of_a_fold_has_its_rows_and_their_sizes(tmp_path):
    structures = small.silicon(6, 0)
    for part in ("one", "two"):
        small.write_is2rs(tmp_path / part, structures, sids=[f"{part}{i}" for i in range(6)])
    config = {"src": [str(tmp_path / "one"), str(tmp_path / "two")]}
    whole = IS2RSDataset(config)
    rows = {}
    for held in (True, False):
        fold = {"of": 4, "number": 1, "held": held}
        data = IS2RSDataset(config | {"fold": fold})
        items = [data[i] for i in range(len(data))]
        rows[held] = [int(item.row) for item in items]
        sizes = data.get_metadata("natoms", list(range(len(data))))
        assert list(sizes) == [len(item.pos) for item in items]
        for item in items:
            assert item.sid == whole[int(item.row)].sid
    assert len(rows[True]) == 3 and sorted(rows[True] + rows[False]) == list(range(12))


def write_run(run, rows, shift):
    records = {
        name: [{"row": row, "delta_q": 3.0 + row - by, "diverged": False} for row in rows]
        for name, by in (("base", 0.0), ("tuned", shift))
    }
    (run / "results").mkdir(parents=True)
    (run / "results" / "test.json").write_text(json.dumps({"records": records}))


def test_folds_are_judged_together(tmp_path):
    for k in range(3):
        write_run(tmp_path / str(k), range(k, 9, 3), 1.0)
    runs = [tmp_path / str(k) for k in range(3)]
    found = folds.judge(runs, Basin(2.5))
    assert (found.structures, found.better, found.gained) == (9, 9, 1)
    assert found.change == pytest.approx(-1.0) and found.verdict == "better"
    rows = np.arange(9)
    assert found.log_change == pytest.approx(np.mean(np.log((3 + rows) / (4 + rows))))
    assert "fairchem -c own.yml --mode train lr=1e-4 keep=last" in folds.advice(
        found, "own.yml", ["lr=1e-4"]
    )
    with pytest.raises(ValueError, match="has not ended"):
        folds.judge([*runs, tmp_path / "3"], Basin())


def test_frames_are_refused(inputs, tmp_path):
    """They would be of structures that are held out."""
    _, _, config, *overrides = command(inputs, tmp_path)
    with pytest.raises(SystemExit, match=r"frames of structures that are held out"):
        folds.main([config, "3", *overrides])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_each_structure_is_judged_by_a_model_that_has_not_seen_it(inputs, tmp_path, capsys):
    _, _, config, *overrides = command(inputs, tmp_path, "epochs=1")
    overrides = [each for each in overrides if not each.startswith("forces.")]
    none = ["forces.src=none", "forces.max_atoms=null", "forces.val=null"]
    words = [config, "2", *overrides, *none]
    assert folds.main(words) == 0
    out = capsys.readouterr().out
    stored = json.loads((tmp_path / "gdeq_folds.json").read_text())
    assert stored["structures"] == 11 and stored["runs"] == ["gdeq_fold1of2", "gdeq_fold2of2"]
    assert f"2 folds, tuned against base, {stored['verdict']}" in out
    runs = [tmp_path / name / "results" / "test.json" for name in stored["runs"]]
    first, second = (
        {each["sid"] for each in json.loads(path.read_text())["records"]["tuned"]} for path in runs
    )
    assert first and second and not first & second
