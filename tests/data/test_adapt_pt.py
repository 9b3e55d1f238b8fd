"""The ADAPT .pt reader on synthetic files, and on the real sample where there is one.

The plain case and the commonest faults are in ``test_datasets``; here is what is easily got wrong:
faces of the cell, thresholds, files that are nearly right, and what fairchem reads of the rows.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.db import connect
from fairchem.core.datasets.ase_datasets import AseDBDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fairchem_gdeq.data.adapt_pt import Frame, convert, read_adapt_file, split_trajectories

CELL = 10.9
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "adapt_mini_trainset.pt"


def frame(positions, numbers=None):
    """A snapshot without forces."""
    positions = np.asarray(positions, dtype=float)
    n = len(positions)
    numbers = np.full(n, 14) if numbers is None else np.asarray(numbers)
    return Frame(numbers, positions, np.zeros((n, 3)), np.ones(n))


def stored(count=3, n=4):
    """What such a file holds: ``count`` snapshots of n Si atoms that move by 0.1 Angstrom a step."""
    rng = np.random.default_rng(0)
    x = np.zeros((n, 13))
    x[:, :3] = rng.uniform(1, 9, (n, 3))
    x[:, 3:5] = (14, 3)
    x[:, 12] = np.arange(1, n + 1)
    move = np.zeros((n, 13))
    move[:, 0] = 0.1
    return {
        "X": [torch.tensor(x + i * move, dtype=torch.float32) for i in range(count)],
        "Y": [torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32) for _ in range(count)],
    }


def save(path, content):
    torch.save(content, path)
    return path


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_wrapping_is_undone_exactly(seed, steps):
    """A path that crosses faces, wrapped frame by frame, comes back up to one lattice vector."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-0.25, 0.25, (steps, 6, 3))
    path = rng.uniform(0, CELL, (6, 3)) + np.cumsum(moves, axis=0)
    (found,) = split_trajectories([frame(x % CELL) for x in path], CELL, max_jump=0.5)
    np.testing.assert_allclose(found[0].positions, path[0] % CELL, atol=0)
    for a, x in zip(found, path, strict=True):
        np.testing.assert_allclose(a.positions - found[0].positions, x - path[0], atol=1e-12)


def test_where_a_relaxation_ends():
    start = np.random.default_rng(0).uniform(1, 9, (4, 3))
    near, far = start.copy(), start.copy()
    near[2, 0] += 0.49
    far[2, 0] += 0.51
    lengths = lambda *frames, **k: [len(t) for t in split_trajectories(list(frames), CELL, **k)]  # noqa: E731
    assert lengths(frame(start), frame(near)) == [2]
    assert lengths(frame(start), frame(far)) == [1, 1]
    assert lengths(frame(start), frame(far), max_jump=0.6) == [2]
    assert lengths(frame(start), frame(start[:3])) == [1, 1], "another number of atoms"
    assert lengths(frame(start), frame(start, [14, 14, 14, 28])) == [1, 1], "another composition"
    swapped = [frame(start, [28, 14, 14, 14]), frame(start, [14, 28, 14, 14])]
    assert lengths(*swapped) == [1, 1], "same composition, another atom"
    assert lengths() == []


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match="positive length in Angstrom for cell"):
        split_trajectories([frame(np.ones((2, 3)))], length)
    with pytest.raises(ValueError, match="positive length in Angstrom for max_jump"):
        split_trajectories([frame(np.ones((2, 3)))], CELL, max_jump=length)


def test_precision_and_columns(tmp_path):
    content = stored()
    frames = read_adapt_file(save(tmp_path / "a.pt", content))
    assert len(frames) == 3
    for a, x, y in zip(frames, content["X"], content["Y"], strict=True):
        assert a.positions.dtype == a.forces.dtype == a.weights.dtype == np.float64
        np.testing.assert_array_equal(a.positions, x[:, :3].double())
        np.testing.assert_array_equal(a.forces, y.double())
        assert a.numbers.tolist() == [14] * 4 and a.weights.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("symbol", "group", "period"), [("H", 1, 1), ("C", 14, 2), ("Ni", 10, 4), ("Br", 17, 4)]
)
def test_elements_are_known_by_group_and_period(tmp_path, symbol, group, period):
    from ase.data import atomic_numbers

    content = stored(1)
    content["X"][0][2, 3:5] = torch.tensor([group, period])
    (found,) = read_adapt_file(save(tmp_path / "a.pt", content))
    assert found.numbers.tolist() == [14, 14, atomic_numbers[symbol], 14]


def normalised(x):
    x = x.clone()
    x[:, 3] -= 0.4
    return x


NEARLY = {
    "nothing in X": (lambda s: s | {"X": None}, "list of snapshots in X, found NoneType"),
    "a dict in Y": (lambda s: s | {"Y": {"a": 1}}, "list of snapshots in Y, found dict"),
    "a bare number": (lambda s: s | {"X": torch.tensor(1.0)}, "list of snapshots in X"),
    "odd keys": (lambda s: {1: 2, "Z": 3}, "lists X and Y, found"),
    "a bare list": (lambda s: [1, 2], "lists X and Y, found list"),
    "no snapshot": (lambda s: {"X": [], "Y": []}, "0 entries"),
    "text": (lambda s: s | {"X": ["a"] * 3}, "entry 0: expected a table of numbers in X"),
    "ragged": (lambda s: s | {"Y": [[[1, 2], [1]]] * 3}, "entry 0: expected a table of numbers"),
    "no atom": (
        lambda s: {"X": [x[:0] for x in s["X"]], "Y": [y[:0] for y in s["Y"]]},
        r"entry 0: expected X \[n, 13\]",
    ),
    "forces of others": (lambda s: s | {"Y": [*s["Y"][:2], s["Y"][2][:3]]}, r"entry 2.*\(3, 3\)"),
    "infinite force": (lambda s: s | {"Y": [y / 0 for y in s["Y"]]}, "NaN or infinity"),
    "normalised": (lambda s: s | {"X": [normalised(x) for x in s["X"]]}, "group 13.6 and period 3"),
}


@pytest.mark.parametrize("fault", NEARLY)
def test_nearly_right_files_are_refused_by_name(tmp_path, fault):
    change, message = NEARLY[fault]
    with pytest.raises(ValueError, match=message) as error:
        read_adapt_file(save(tmp_path / "nearly.pt", change(stored())))
    assert "nearly.pt" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_bytes_that_are_no_torch_file(tmp_path, content):
    (tmp_path / "bytes.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"bytes\.pt: not a file of plain tensors"):
        read_adapt_file(tmp_path / "bytes.pt")


def test_rows_as_fairchem_reads_them(tmp_path):
    """Forces without an energy, loss weights kept, start and end of the one relaxation."""
    content = stored()
    assert convert(save(tmp_path / "a.pt", content), tmp_path / "out", "val", CELL) == (1, 3)
    training = AseDBDataset({"src": str(tmp_path / "out" / "val_frames")})
    torch.testing.assert_close(training[1].forces, content["Y"][1])
    assert training.get_metadata("natoms", 1) == 4
    with connect(tmp_path / "out" / "val_frames" / "data.aselmdb", type="aselmdb") as database:
        row = database.get(2)
    assert "energy" not in row and row.data["sid"] == "val0_1"
    np.testing.assert_array_equal(row.data["loss_weight"], [1, 2, 3, 4])
    with connect(tmp_path / "out" / "val" / "data.aselmdb", type="aselmdb") as database:
        row = database.get(1)
    relaxed = np.asarray(row.data["pos_relaxed"])
    assert relaxed.dtype == np.float64 and row.data["sid"] == "val0"
    np.testing.assert_allclose(relaxed - row.positions, [[0.2, 0, 0]] * 4, atol=1e-6)
    assert row.pbc.all() and "forces" not in row and "energy" not in row
    np.testing.assert_array_equal(row.cell, CELL * np.eye(3))


def test_existing_data_is_not_written_over(tmp_path):
    path = save(tmp_path / "a.pt", stored())
    convert(path, tmp_path / "out", "val", CELL)
    with pytest.raises(FileExistsError, match="val is not empty"):
        convert(path, tmp_path / "out", "val", CELL)


def test_command(tmp_path):
    save(tmp_path / "a.pt", stored())

    def run(source):
        command = [sys.executable, "-m", "fairchem_gdeq.data.adapt_pt", source, "out"]
        return subprocess.run(
            [*command, "--cell", str(CELL), "--name", "test"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    done = run("a.pt")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 relaxations and 3 frames" in done.stdout
    assert (tmp_path / "out" / "test" / "metadata.npz").exists()
    missing = run("none.pt")
    assert missing.returncode != 0 and "zenodo.org/records/17411327" in missing.stderr


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the real sample is not part of the project")
def test_real_sample(tmp_path):
    """One relaxation of Ni and Br in 216 Si: Cartesian, unwrapped, forces falling."""
    frames = read_adapt_file(SAMPLE)
    assert np.bincount(frames[0].numbers).nonzero()[0].tolist() == [14, 28, 35]
    (path,) = split_trajectories(frames, 16.406)
    assert len(path) == 20 and len(path[0].numbers) == 217
    largest = [np.linalg.norm(f.forces, axis=1).max() for f in path]
    assert largest[0] > 2 and largest[-1] < 0.05
    assert convert(SAMPLE, tmp_path, "mini", 16.406) == (1, 20)
