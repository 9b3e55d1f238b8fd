"""Parts from outside the package (``tests/outside.py``): by name, by path, in a run of the command."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fairchem_gdeq.fairchem2 import families
from fairchem_gdeq.relax import LOSSES, SIGNALS, SOLVERS, make_signal, solve
from fairchem_gdeq.testing.fairchem2 import small
from fairchem_gdeq.testing.fields import random_batch
from tests import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def outside(monkeypatch):
    """The parts are known inside this test alone."""
    from fairchem_gdeq.evaluation.metric import METRICS
    from fairchem_gdeq.relax.adjoints import ADJOINTS

    for registry in (SOLVERS, ADJOINTS, LOSSES, SIGNALS):
        monkeypatch.setattr(registry, "_known", dict(registry._known))
    metrics = dict(METRICS)
    monkeypatch.delitem(sys.modules, "tests.outside", raising=False)
    import tests.outside as parts

    yield parts
    METRICS.clear()
    METRICS.update(metrics)


def test_parts_by_name(outside, monkeypatch):
    """The solver's state is selected and joined by what it declares: a batch goes as each alone."""
    monkeypatch.setattr(
        "fairchem_gdeq.relax.causes.SHORTEST", 0.0
    )  # atoms of this field lie anywhere
    operator, x, target = random_batch("site", [3, 4, 2], conservative=True)
    solver = SOLVERS.make({"name": "heavy_ball", "momentum": 0.5})
    together = solve(operator, x, solver, 1e-6, 4000)
    assert together.converged.all() and len(set(together.steps.tolist())) > 1
    for k in range(3):
        mask = torch.arange(3) == k
        atoms = operator.structures.atoms_of(mask)
        alone = solve(operator.select(mask), x[atoms], solver, 1e-6, 4000)
        torch.testing.assert_close(together.positions[atoms], alone.positions, rtol=0, atol=1e-9)
        assert int(alone.steps) == int(together.steps[k])
    settings = {"horizon": 2, "solver": "heavy_ball", "max_steps": 4000, "fmax": 1e-6}
    settings |= {
        "adjoint": {"name": "short_gmres", "tol": 1e-6, "damping": 0.0},
        "loss": "root_delta_q",
        "short": 1,
    }
    report = make_signal("gdeq", **settings)(operator, x, target)
    assert report.contributing.all()
    expected = (1 + report.guided).sqrt().mean() + (1 + report.relaxed).sqrt().mean()
    assert report.loss == pytest.approx(float(expected), rel=1e-9)
    windows = make_signal("two_windows", **settings)
    assert type(windows) is outside.TwoWindows and SIGNALS.name_of(windows) == "two_windows"
    before = [p.grad.clone() for p in operator.field.parameters() if p.grad is not None]
    windows(operator, x, target)
    after = [p.grad for p in operator.field.parameters() if p.grad is not None]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_joined_states_keep_each_structure_at_its_own_stage(outside):
    operator, x, _ = random_batch("site", [3, 2])
    one, two = (operator.select(torch.arange(2) == k) for k in range(2))
    solver = outside.HeavyBall()
    old, new = solver.start(one, x[:3]), solver.start(two, x[3:])
    _, old = solver.propose(one, x[:3], torch.ones(3, 3), old)
    both = old.join([new])
    assert both.moves.shape == (1, 5, 3) and (both.moves[:, 3:] == 0).all()
    assert both.steps.tolist() == [1.0, 0.0]
    again = both.select(torch.tensor([1]), torch.tensor([3, 4]))
    assert again.moves.shape == (1, 2, 3) and again.steps.tolist() == [0.0]


def test_unknown_names_and_options_are_named():
    with pytest.raises(ValueError, match=r"unknown solver 'newton'.*lbfgs"):
        SOLVERS.make("newton")
    with pytest.raises(ValueError, match=r"solver 'lbfgs'.*softness"):
        SOLVERS.make({"name": "lbfgs", "softness": 3})
    with pytest.raises(ValueError, match="its name"):
        SOLVERS.make({"softest": 3})
    with pytest.raises(ValueError, match=r"nowhere\.Solver.*No module"):
        SOLVERS.make("nowhere.Solver")
    with pytest.raises(ValueError, match=r"tests\.outside\.Nothing"):
        SOLVERS.make("tests.outside.Nothing")
    with pytest.raises(ValueError, match="already"):
        SOLVERS.register("lbfgs")(type("Other", (), {}))
    with pytest.raises(ValueError, match=r"unknown settings horizons.*horizon"):
        make_signal("gdeq", horizons=3)


def test_a_family_of_backbones(monkeypatch):
    """A class that registers how its neighbours are frozen, and one of which nothing is known."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))

    class Theirs(nn.Module):
        pass

    class Variant(Theirs):
        pass

    with pytest.raises(ValueError, match="register_family"):
        families.graphs_of(Theirs())
    families.register_family(Theirs, families.EdgeList)
    graphs = families.graphs_of(Variant())
    assert isinstance(graphs, families.EdgeList) and type(graphs.backbone) is Variant


def test_a_run_with_parts_from_outside(tmp_path):
    """Solver, loss, signal, backbone and metric by their paths."""
    for split, count, seed in (("train", 4, 0), ("val", 2, 1), ("test", 2, 2)):
        small.write_is2rs(tmp_path / split, small.silicon(count, seed))
    model = {"backbone": {"model": "tests.outside.Tethers"}, "heads": small.COORDINATE_HEAD}
    small.write_checkpoint(tmp_path / "base.pt", model, [small.task_config("forces")])
    signal = "runner.train_eval_unit.signal"
    arguments = [
        *("-c", str(ROOT / "configs" / "si" / "gdeq.yml"), "--mode", "train"),
        *(f"data={tmp_path}", f"base={tmp_path / 'base.pt'}", "trust_files=true", "epochs=1"),
        *("train_structures=1.0", "test_structures=1.0", f"job.run_dir={tmp_path}"),
        *("forces.src=none", "forces.val=null", "paths.train=${data}/train"),
        *("paths.val=${data}/val", "paths.test=${data}/test"),
        *(
            "horizon=2",
            "relaxer.horizon=2",
            "relaxer.max_steps=5",
            "max_atoms=16",
            "eval_max_atoms=64",
        ),
        "job.scheduler.ranks_per_node=1",
        "relaxer.solver=tests.outside.HeavyBall",
        "signal=tests.outside.TwoWindows",
        "loss=tests.outside.RootDeltaQ",
        f"+{signal}.short=1",
        "metrics=[tests.worst.WORST]",
    ]
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = commands.fairchem(*arguments, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    stored = json.loads(
        (tmp_path / "tests.outside.TwoWindows" / "results" / "test.json").read_text()
    )
    assert {"base", "tuned"} <= set(stored["scores"]) and stored["signal"] == "two_windows"
    for title, row in stored["scores"].items():
        worst = max(record["delta_q"] for record in stored["records"][title])
        assert row["delta_q_worst"] == pytest.approx(worst)
    assert "worst" in done.stdout
