"""Our files, joined by fairchem's own script as a user calls it."""

import subprocess
import sys

import ase
import numpy as np
import pytest

from fairchem_gdeq.evaluation.submission import write_positions

SPLITS = {"OC20": ["id", "ood_ads", "ood_cat", "ood_both"], "OC22": ["id", "ood"]}


def images(seed):
    rng = np.random.default_rng(seed)
    out = []
    for sid in rng.permutation(40)[: 3 + seed]:
        n = int(rng.integers(1, 9))
        atoms = ase.Atoms(numbers=rng.integers(1, 80, n), positions=rng.normal(size=(n, 3)))
        atoms.info["sid"] = str(int(sid))
        out.append(atoms)
    return out


@pytest.mark.parametrize("dataset", SPLITS)
def test_fairchems_script_joins_the_splits(tmp_path, dataset):
    joined = tmp_path / "submission.npz"
    arguments, made = ["--out-path", str(joined), "--dataset", dataset], {}
    for seed, split in enumerate(SPLITS[dataset]):
        made[split] = images(seed)
        write_positions(tmp_path / f"{split}.npz", made[split])
        arguments += [f"--{split.replace('_', '-')}", str(tmp_path / f"{split}.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "fairchem.core.scripts.make_submission_file", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stored = np.load(joined)  # no pickles in it
    keys = {f"{s}_{k}" for s in SPLITS[dataset] for k in ("ids", "pos", "chunk_idx")}
    assert set(stored.files) == keys
    for split, atoms in made.items():
        ids, pos, cuts = (stored[f"{split}_{k}"] for k in ("ids", "pos", "chunk_idx"))
        assert ids.dtype.kind == "U" and cuts.dtype.kind == "i"
        assert len(ids) == len(set(ids.tolist())) == len(cuts) + 1 == len(atoms)
        expected = {a.info["sid"]: a.positions for a in atoms}
        for sid, positions in zip(ids, np.split(pos, cuts), strict=True):
            np.testing.assert_array_equal(positions, expected[str(sid)])


def test_one_structure_and_none(tmp_path):
    write_positions(tmp_path / "one.npz", images(0)[:1])
    stored = np.load(tmp_path / "one.npz")
    assert stored["chunk_idx"].shape == (0,) and len(np.split(stored["pos"], [])) == 1
    with pytest.raises(ValueError, match="no structures"):
        write_positions(tmp_path / "none.npz", [])


def test_names_that_several_structures_have_make_no_file(tmp_path, caplog):
    """The leaderboard could not tell them apart, and the one left out would not be missed."""
    path, atoms = tmp_path / "test.npz", images(0)
    write_positions(path, atoms)
    write_positions(path, [*atoms, atoms[1].copy()])
    assert list(tmp_path.iterdir()) == []
    assert f"1 names stand for several: {atoms[1].info['sid']}" in caplog.text
