"""A diagnosis on a double well, where everything is known, and as a user starts it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from fairchem_gdeq.diagnose import Finding, Probe, examine
from fairchem_gdeq.diagnose.advice import advise
from fairchem_gdeq.diagnose.conditions import FAILS, HOLDS, UNDECIDED, conditions_of
from fairchem_gdeq.diagnose.page import command, write_diagnosis, write_numbers
from fairchem_gdeq.evaluation.basin import Basin
from fairchem_gdeq.evaluation.records import Label
from fairchem_gdeq.relax import Operator, Relaxer
from fairchem_gdeq.testing.fields import structures
from tests import commands

ROOT = Path(__file__).parents[2]
ALPHA = 0.05


@dataclass
class DoubleWell:
    """Minima at x = -1 and x = 1, of curvature 8 along x and 2 across, for every atom."""

    translation_invariant = rotation_equivariant = False
    atoms: int = 1

    def __call__(self, x):
        return torch.cat([-4 * x[:, :1] * (x[:, :1] ** 2 - 1), -2 * x[:, 1:]], dim=-1)

    def select(self, mask):
        return self

    def join(self, others):
        return self

    def freeze(self, positions):
        return self

    def unfreeze(self):
        return self


def found(start, target, relaxer=None, **probe):
    """Of one atom of mass 25, at x = start."""
    s = replace(structures([1]), masses=torch.tensor([25.0]))
    operator = Operator.build(DoubleWell(), s, ALPHA)
    relaxer = relaxer or Relaxer(10, fmax=0.01, max_steps=200)
    points = (torch.tensor([[x, 0.0, 0.0]]) for x in (start, target))
    label, chosen = Label("one", 0), Probe(**probe)
    return examine(label, operator, *points, relaxer, Basin(), chosen, budget=3)


def test_a_start_in_the_other_well():
    finding = found(-0.02, 1.0, starts=6, shift=0.1)
    assert finding.end == "wrong" and finding.target_stays and finding.minima == 2
    assert finding.end_delta_q == pytest.approx(10.0, abs=0.02)  # 2 Angstrom times the root of 25
    assert finding.target_force_max == pytest.approx(0.0, abs=1e-6)
    assert finding.stiffest == pytest.approx(8.0, rel=0.03)
    x, steps = -0.02, 0
    while abs(4 * x * (x * x - 1)) >= 0.01:
        x, steps = x - ALPHA * 4 * x * (x * x - 1), steps + 1
    assert finding.length == steps + 1  # and the evaluation that shows it
    assert finding.decided == 0
    assert (finding.stale_force, finding.stale_edges) == (0.0, 0)


def test_a_start_in_the_right_well():
    finding = found(0.5, 1.0, starts=2, shift=0.01)
    assert (finding.end, finding.minima, finding.target_stays) == ("right", 1, True)


def test_a_target_that_is_not_at_the_minimum():
    finding = found(0.5, 1.45, starts=0)
    assert (finding.end, finding.target_stays) == ("imprecise", False)
    assert finding.target_moved == pytest.approx(0.45 * 5, abs=0.02)


def test_a_relaxation_that_does_not_end():
    finding = found(-0.02, 1.0, Relaxer(1, fmax=0.01, max_steps=1), max_steps=3)
    assert (finding.end, finding.length, finding.decided) == ("unfinished", None, None)


def test_where_the_basin_is_decided():
    """A solver with long steps jumps over the barrier from the start, and not from later on."""
    solver = {"name": "lbfgs", "stiffness": 5.0, "softest": None, "max_step": 2.0}
    finding = found(1.8, 1.0, Relaxer(0, solver, 0.01))
    assert (finding.end, finding.decided) == ("wrong", 5)


def test_numbers_that_cannot_be_meant():
    for wrong in ({"structures": 0}, {"same": 0.0}, {"shift": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Probe(**wrong)


# ---- what follows ------------------------------------------------------------------------------

GOOD = Finding(
    sid="s",
    row=0,
    atoms=64,
    target_force_max=0.1,
    target_force_mean=0.03,
    target_moved=0.3,
    target_stays=True,
    end_delta_q=0.3,
    end="right",
    minima=1,
    length=60,
    decided=10,
    stiffest=12.0,
    stale_force=0.01,
    stale_edges=2,
)
MISSED = replace(GOOD, end="wrong", end_delta_q=7.0, minima=3)
LOST = replace(MISSED, target_stays=False, target_moved=9.0)
ENDLESS = replace(GOOD, end="unfinished")
LOOSE = replace(GOOD, end="imprecise", end_delta_q=2.5)


@pytest.mark.parametrize(
    ("sample", "verdicts", "sentence"),
    [
        ([GOOD] * 12 + [MISSED] * 12, [HOLDS, HOLDS, HOLDS, HOLDS], "Tuning can help"),
        ([GOOD] * 60, [HOLDS, FAILS, FAILS, HOLDS], "little to gain"),
        ([LOST] * 24, [FAILS, HOLDS, HOLDS, HOLDS], "Train on forces first"),
        ([GOOD] * 10 + [ENDLESS] * 14, [HOLDS, FAILS, FAILS, HOLDS], "Look at the relaxations"),
        ([GOOD] * 20 + [LOOSE] * 40, [HOLDS, FAILS, FAILS, HOLDS], "Only precision"),
        ([GOOD, MISSED], [HOLDS] + [UNDECIDED] * 3, "Undecided with 2"),
    ],
)
def test_verdicts(sample, verdicts, sentence):
    conditions = conditions_of(sample)
    assert [c.verdict for c in conditions] == verdicts
    advice = advise(sample, conditions, alpha=0.05, lr=1e-4, frames=True)
    assert sentence in advice.verdict
    assert advice.settings["horizon"] == 10 and advice.settings["alpha"] == 0.05
    forces_first = sentence == "Train on forces first"
    assert advice.settings["preset"] == ("full" if forces_first else "small_data")


def test_steps_are_shortened_for_stiff_bonds():
    sample = [replace(GOOD, stiffest=110.0)]
    advice = advise(sample, conditions_of(sample), alpha=0.05, lr=1e-5, frames=False)
    assert advice.settings["alpha"] == pytest.approx(0.009)
    sample = [replace(GOOD, stiffest=18.0)]
    advice = advise(sample, conditions_of(sample), alpha=0.2, lr=1e-5, frames=False)
    assert advice.settings["alpha"] == pytest.approx(0.05)  # 0.06 times 18 would be too much


ODD = replace(MISSED, sid="<b>odd & name</b>", length=None, decided=None)


def write_example(folder):
    """The page of two structures, one of them with a name that is HTML."""
    conditions = conditions_of([GOOD, ODD])
    advice = advise([GOOD, ODD], conditions, 0.05, 1e-5, False)
    found = ([GOOD, ODD], conditions, advice, {"step": "1 s"})
    write_numbers(folder, *found)
    return write_diagnosis(folder, "title", *found)


def test_the_page_shows_what_it_says(tmp_path):
    text = write_example(tmp_path).read_text()
    stored = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [f["end"] for f in stored["findings"]] == ["right", "wrong"]
    assert stored["conditions"][2]["share"]["those"] == 1
    assert stored["verdict"] in text and "<td>1 s</td>" in text
    assert "<td>&lt;b&gt;odd &amp; name&lt;/b&gt;</td>" in text and "<td>more</td>" in text
    assert "<b>odd" not in text


# ---- as a user starts it -----------------------------------------------------------------------


def test_the_command(tmp_path):
    done = commands.fairchem(
        *("-c", ROOT / "configs/si/gdeq.yml", "--mode", "diagnose", f"job.run_dir={tmp_path}"),
        *("diagnose.structures=2", "diagnose.starts=1", "job.scheduler.ranks_per_node=1"),
        "max_atoms=64",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = tmp_path / "gdeq" / "results" / "diagnose"
    assert done.stdout.splitlines()[-1] == f"report: {results / 'report.html'}"
    stored = json.loads((results / "diagnosis.json").read_text())
    assert stored["verdict"] in (results / "report.html").read_text()
    assert len(stored["findings"]) == 2 and stored["verdict"] in done.stdout
    assert 0 < stored["findings"][0]["stiffest"] < 100 and stored["findings"][0]["atoms"] > 60
    assert "parameters that it moves" in stored["cost"]


@pytest.mark.parametrize(
    "config", ["si/gdeq.yml", "own/gdeq.yml", "oc25/gdeq_ti.yml", "uma/gdeq_bulk.yml"]
)
def test_the_settings_to_begin_with_can_be_typed(config):
    sample = [GOOD, MISSED]
    advice = advise(sample, conditions_of(sample), alpha=0.05, lr=1e-5, frames=True)
    folder, _, name = config.rpartition("/")
    with initialize_config_dir(str(ROOT / "configs" / folder), version_base="1.1"):
        composed = compose(name, overrides=command(advice).split())
    assert (composed.lr, composed.horizon, composed.spare) == (1e-5, 10, 0.5)
    assert composed.loss == "log_delta_q"
