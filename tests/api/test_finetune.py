"""``fairchem_gdeq.finetune`` and ``evaluate``: the command's numbers, from Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixedPlane
from ase.db import connect
from fairchem.core import FAIRChemCalculator
from fairchem.core.units.mlip_unit import load_predict_unit
from omegaconf import OmegaConf

import fairchem_gdeq as gdeq
from fairchem_gdeq.fairchem2.loaders import open_split
from fairchem_gdeq.fairchem2.replay import open_frames
from fairchem_gdeq.relax.signals import Direct, FTStatic
from fairchem_gdeq.testing.fairchem2 import small
from tests import commands

ROOT = Path(__file__).parents[2]
ADJOINT = {"tol": 0.5, "max_vjps": 10, "damping": 0.03}
SHORT = {"horizon": 3, "fmax": 0.5, "max_steps": 25}
SIGNAL = gdeq.GDEQ(**SHORT, adjoint=gdeq.GMRES(**ADJOINT))
QUICK = gdeq.Relaxer(**SHORT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and three data sets."""
    folder = tmp_path_factory.mktemp("api")
    for split, count, seed in (("train", 8, 0), ("val", 3, 1), ("test", 3, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    small.write_frames(folder / "train_frames", small.silicon(6, 3))
    small.checkpoint(folder / "esen.pt")
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return gdeq.load_potential(folder / "esen.pt", device="cpu")


def pairs(path):
    """Starts and targets of a data set."""
    starts, targets = [], []
    with connect(path / "data.aselmdb", type="aselmdb") as database:
        for row in database.select():
            starts.append(row.toatoms())
            targets.append(row.toatoms())
            targets[-1].positions = row.data["pos_relaxed"]
    return starts, targets


def as_fairchem_orders(path):
    """Rows of a data set in the order in which fairchem's data set has them."""
    configs = {"is2rs": {"splits": {"train": {"src": str(path)}}, "format": "is2rs"}}
    sampling = {"sampling": {"type": "explicit", "ratios": {"is2rs.train": 1.0}}}
    dataset = open_split(OmegaConf.create(configs), OmegaConf.create(sampling))
    return [int(dataset[i].row) for i in range(len(dataset))]


def frames_in(path):
    """Labelled structures of a data set, as fairchem orders them."""
    with connect(path / "data.aselmdb", type="aselmdb") as database:
        known = {row.data["sid"]: row.toatoms() for row in database.select()}
    opened = open_frames([str(path)], "si")
    return [known[str(opened[i].sid[0])] for i in range(len(opened))]


def tune(base, folder, order=None, **settings):
    chosen = {"epochs": 1, "lr": 1e-3, "signal": SIGNAL, "relaxer": QUICK, "max_atoms": 16}
    starts, targets = pairs(folder / "train")
    order = order or range(len(starts))
    return gdeq.finetune(
        base,
        [starts[i] for i in order],
        [targets[i] for i in order],
        validation=pairs(folder / "val"),
        progress=False,
        **chosen | settings,
    )


FORCES = {
    "none": ["forces.src=none"],
    "base": ["forces.src=base", "forces.updates=0", "forces.alone=0", "forces.lambda_forces=3.0"],
    "frames": [
        "forces.src=${data}/train_frames",
        "forces.max_atoms=20",
        "forces.updates=2",
        "forces.alone=0.3",
        "forces.limit=0.5",
    ],
}


@pytest.mark.parametrize("kind", FORCES)
def test_it_gives_the_numbers_of_the_command(base, folder, tmp_path, kind):
    """The same batches, gradients, updates and averages, two epochs long, with warm starts."""
    signal = "runner.train_eval_unit.signal."
    arguments = [
        *("-c", str(ROOT / "configs/own/gdeq.yml"), "--mode", "train"),
        *(f"data={folder}", f"base={folder / 'esen.pt'}", f"job.run_dir={tmp_path}"),
        *("dataset=si", "epochs=2", "max_atoms=16"),
        *("eval_max_atoms=64", "horizon=3", "relaxer.horizon=3"),
        *("relaxer.max_steps=25", "relaxer.fmax=0.5"),
        *("lr=1e-3", "warm_start=true", *FORCES[kind]),
        *(f"{signal}fmax=0.5", f"{signal}max_steps=25"),
        *(f"{signal}adjoint.{key}={value}" for key, value in ADJOINT.items()),
    ]
    done = commands.fairchem(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "gdeq/results/test.json").read_text())["history"]
    order = as_fairchem_orders(folder / "train")
    forces = {
        "none": None,
        "base": gdeq.Forces("base", weight=3.0),
        "frames": gdeq.Forces(
            frames_in(folder / "train_frames"), max_atoms=20, updates=2, alone=0.3, limit=0.5
        ),
    }[kind]
    settings = {"epochs": 2, "warm_start": True, "eval_max_atoms": 64, "keep": "lowest"}
    run = tune(base, folder, order, forces=forces, **settings)
    assert len(run.steps) == len(history["steps"]) > 4
    keys = ("loss", "grad_norm", "lr", "vjps", "evaluations", "equilibrium_used")
    keys += ("forces_loss", "signal_share")
    # The first gradient of the base's own forces is that of rounding, and steps differ after it.
    same = 1 if kind == "base" else len(run.steps)
    keys = ("loss", "vjps", "evaluations") if kind == "base" else keys
    for mine, its in zip(run.steps[:same], history["steps"][:same], strict=True):
        assert mine.keys() == its.keys() - {"train/step", "train/alpha", "train/peak_memory_mb"}
        for key in [f"train/{key}" for key in keys if f"train/{key}" in its]:
            assert mine[key] == pytest.approx(its[key], rel=1e-4), key
    assert any(step.get("train/equilibrium_used") for step in run.steps)
    silent = ["train/loss" in step and "train/vjps" not in step for step in run.steps]
    assert sum(silent) == (round(0.3 * len(silent)) if kind == "frames" else 0)
    assert all(("train/forces_loss" in step) == (kind != "none") for step in run.steps)
    assert [e["epoch"] for e in run.history] == [0, 1, 2]
    found = [e["delta_q_mean"] for e in run.history]
    known = [history["base"], *history["epochs"]]
    assert found == pytest.approx(
        [e["delta_q_mean"] for e in known], rel=1e-2 if kind == "base" else 1e-3
    )
    changes = [e["against_base"]["log_change"] for e in run.history[1:]]
    assert run.best_epoch == (1 + int(np.argmin(changes)) if min(changes) < 0 else 0)
    assert f"{found[run.best_epoch]:.3f}" in repr(run)


def test_a_run_in_vain_gives_the_base_back(base, folder, caplog):
    before = [p.clone() for p in base.model.parameters()]
    run = tune(base, folder, lr=10.0, ema_decay=None)
    assert run.best_epoch == 0 and not run.improved and "no epoch was better" in caplog.text
    parts = zip(before, base.model.parameters(), run.best.model.parameters(), strict=True)
    assert all(torch.equal(old, now) and torch.equal(old, best) for old, now, best in parts)
    pairs_ = zip(before, run.last.model.parameters(), strict=True)
    assert any(not torch.equal(old, now) for old, now in pairs_)


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        (Direct(), "predicts displacements and is no Potential"),
        (FTStatic(), "the forces of frames"),
    ],
)
def test_controls_that_cannot_be_meant_are_refused(base, folder, signal, said):
    with pytest.raises(ValueError, match=said):
        gdeq.finetune(base, *pairs(folder / "train"), signal=signal, progress=False)


def test_forces_that_cannot_be_meant_are_refused(base, folder):
    starts, targets = pairs(folder / "train")
    frames = frames_in(folder / "train_frames")

    def refused(said, forces, validation=None, error=ValueError):
        with pytest.raises(error, match=said):
            gdeq.finetune(base, starts, targets, validation, forces=forces, progress=False)

    refused("no frames", [])
    refused("expected ase.Atoms, got str", ["frame"], error=TypeError)
    refused("forces='bse': expected labelled structures", "bse")
    refused("forces.limit=-1", gdeq.Forces(frames, limit=-1))
    refused("have nothing to teach without a signal", gdeq.Forces("base", updates=2))
    moved = frames[2].copy()
    moved.calc = frames[2].calc
    moved.positions[0] += 0.1  # the forces are of other positions
    refused("1 of 7 have no forces.*frame 6", [*frames, moved])
    plane = frames[2].copy()
    plane.calc = frames[2].calc
    plane.set_constraint(FixedPlane([0], (0, 0, 1)))
    refused("frames number 6, a frame without a name: it has a FixedPlane", [*frames, plane])
    known = pairs(folder / "val")
    atoms = known[1][2].copy()
    atoms.calc = SinglePointCalculator(atoms, forces=np.ones((len(atoms), 3)))
    refused("frame 6 is validation target 2", [*frames, atoms], known)
    labels = [atoms.copy() for atoms in frames]
    for atoms, forces in zip(labels, base.forces(labels), strict=True):
        atoms.calc = SinglePointCalculator(atoms, forces=23.06 * forces)
    refused("frames given to finetune: .*in kcal/mol/Angstrom", labels)


def test_what_is_saved_opens_in_plain_fairchem(base, folder, tmp_path):
    run = tune(base, folder)
    run.last.save(tmp_path / "tuned.pt")
    unit = load_predict_unit(tmp_path / "tuned.pt", device="cpu")
    (atoms,) = small.silicon(1, seed=5)
    ours = run.last.forces(atoms)[0]
    assert np.abs(ours - base.forces(atoms)[0]).max() > 1e-4
    plain = FAIRChemCalculator(unit, task_name="si")
    np.testing.assert_allclose(plain.get_forces(atoms), ours, atol=2e-5)
    for again in (unit, tmp_path / "tuned.pt"):
        opened = gdeq.load_potential(again, "si", device="cpu")
        np.testing.assert_allclose(opened.forces(atoms)[0], ours, atol=1e-6)
        opened.save(tmp_path / "again.pt")
    atoms.calc = run.last.ase_calculator()
    np.testing.assert_allclose(atoms.get_forces(), ours, atol=1e-6)


def test_scores_do_not_depend_on_how_targets_are_wrapped(base, folder, capsys):
    starts, targets = pairs(folder / "test")
    base = gdeq.Potential(**{**vars(base), "task": base.task.__class__(relaxer=QUICK)})
    one = gdeq.evaluate(base, starts, targets, name="some")
    assert "some split, 3 structures" in str(one) and str(one) in capsys.readouterr().out
    for target in targets:
        target.positions[1::2] += target.cell[1]
    two = gdeq.evaluate({"again": base}, starts, targets, show=False)
    assert capsys.readouterr().out == ""
    found = one.scores["esen"]["delta_q_mean"]
    assert two.scores["again"]["delta_q_mean"] == pytest.approx(found, rel=1e-5)
    assert [r.row for r in one.records["esen"]] == [0, 1, 2]
    unrelaxed = one.records["unrelaxed X_0"][0]
    assert unrelaxed.evaluations == 0 < one.records["esen"][0].evaluations


def test_pairs_that_do_not_belong_together_are_refused(base):
    starts = small.silicon(3)
    targets = [atoms.copy() for atoms in starts]
    with pytest.raises(ValueError, match="3 starts and 2 targets"):
        gdeq.evaluate(base, starts, targets[:2])
    targets[0].symbols[0] = "C"
    targets[2].positions[1] = np.nan
    with pytest.raises(ValueError, match="2 of 3 rows") as refused:
        gdeq.finetune(base, starts, targets)
    for words in ("structure 0: species order differs", "structure 2: the target's positions"):
        assert words in str(refused.value)
    with pytest.raises(ValueError, match="no structures"):
        gdeq.finetune(base, [], [])
    with pytest.raises(ValueError, match="max_atoms=5"):
        gdeq.finetune(base, starts, starts, max_atoms=5)


def test_a_potential_says_what_it_lacks(folder):
    with pytest.raises(ValueError, match="for the data sets si, not for 'oc25'"):
        gdeq.load_potential(folder / "esen.pt", dataset="oc25")
    with pytest.raises(TypeError, match="got dict"):
        gdeq.load_potential({})
    with pytest.raises(ValueError, match="give its tasks"):
        gdeq.load_potential(small.model("esen"))
    opened = gdeq.load_potential(small.model("esen"), tasks=small.tasks())
    with pytest.raises(ValueError, match="config is not known"):
        opened.save(folder / "never.pt")
