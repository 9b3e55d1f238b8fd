"""An audit where the answer is known: each check by itself, a model beside itself, and the command."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.db import connect

from fairchem_gdeq.api import load_potential
from fairchem_gdeq.audit import (
    NVE,
    Audit,
    Auditor,
    audit,
    dimers,
    dynamics,
    frames,
    judged,
    sharing,
    strained,
)
from fairchem_gdeq.audit import rows as table
from fairchem_gdeq.audit.relaxations import End, Relaxed, geometry_rows, rmsd, space_group
from fairchem_gdeq.audit.relaxing import potential_of
from fairchem_gdeq.audit.sample import Frame, Pair, Sample, folder_frames, relaxation_of
from fairchem_gdeq.evaluation.scoring import EvaluatedModel
from fairchem_gdeq.fairchem2.runner import GDEQRunner
from fairchem_gdeq.fairchem2.task import IS2RS
from fairchem_gdeq.relax import Relaxer
from fairchem_gdeq.testing.fairchem2 import small
from tests import commands
from tests.device.checks import assert_same

ROOT = Path(__file__).parents[2]

# ---- rows --------------------------------------------------------------------------------------


def test_a_change_is_judged_by_pairs():
    base = np.linspace(1, 9, 12)
    noise = np.random.default_rng(0).normal(scale=0.02, size=12)
    worse = table.paired("c", "q", "", [base, base + 0.1 + noise])
    assert worse.verdict == "worse" and worse.sample == 12
    assert worse.change == pytest.approx(0.1 + noise.mean())
    assert worse.low < worse.change < worse.high
    assert table.paired("c", "q", "", [base, base + 0.1], good="more").verdict == "better"
    assert table.paired("c", "q", "", [base, base + 0.1], good="neither").verdict == "differs"
    assert table.paired("c", "q", "", [base, base + 5 * noise]).verdict == "undecided"
    same = table.paired("c", "q", "", [base, base])
    assert (same.verdict, same.change, same.low, same.high) == ("no change", 0.0, 0.0, 0.0)


def test_few_and_missing_are_said():
    few = table.paired("c", "q", "", [[1.0, 2, 3], [2.0, 3, 4]])
    assert few.verdict == "undecided" and "3 are too few to judge: 6 are needed" in few.remark
    holed = table.paired("c", "q", "", [[1.0] * 8, [2.0] * 7 + [np.inf]])
    assert holed.sample == 7 and holed.tuned == 2.0 and "1 of 8 are left out" in holed.remark
    assert table.paired("c", "q", "", [[np.nan], [1.0]]).verdict == "not made"
    grouped = table.paired("c", "q", "", [[0.0] * 8, [1.0] * 8], groups=list("aaaabbbb"))
    assert (grouped.sample, grouped.verdict) == (2, "undecided")  # eight frames of two relaxations
    text = table.summary([few, holed, table.not_made("c", "r", "why")])
    assert "1 of 3 quantities worse: q (c)" in text and "1 could not be measured" in text


def test_work_is_shared_and_comes_back_in_order(monkeypatch):
    """Two ranks, as threads."""
    here, barrier, box = threading.local(), threading.Barrier(2), [None, None]

    def gather(items):
        box[here.rank] = items
        barrier.wait()
        found = [each for part in list(box) for each in part]
        barrier.wait()
        return found

    monkeypatch.setattr(sharing, "rank", lambda: here.rank)
    monkeypatch.setattr(sharing, "ranks", lambda: 2)
    monkeypatch.setattr(sharing, "gather", gather)
    found, asked = {}, []

    def measure(some):
        asked.extend(some)
        if 7 in some:
            raise ArithmeticError("seven")
        return [10 * each for each in some]

    def work(rank):
        here.rank = rank
        found[rank] = sharing.spread(range(5), measure), sharing.spread([1], measure)
        with pytest.raises(sharing.Unmeasured, match="ArithmeticError: seven"):
            sharing.spread([6, 7], measure)
        found[rank] += (sharing.attempted("c", "q", lambda: sharing.spread([7], measure)),)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        assert found[rank][:2] == ([0, 10, 20, 30, 40], [10])
        assert "Could not be measured: ArithmeticError: seven" in found[rank][2][0].remark
    assert sorted(asked[:6]) == [0, 1, 1, 2, 3, 4]  # each item once


# ---- dimers ------------------------------------------------------------------------------------


def of_calculator(calculator, flipped_below=0.0):
    """A potential of two atoms; nearer than that its forces have the wrong sign."""

    def forces(structures):
        found = []
        for atoms in structures:
            trial = atoms.copy()
            trial.calc = calculator
            sign = -1 if atoms.get_distance(0, 1) < flipped_below else 1
            found.append(sign * trial.get_forces())
        return found

    return forces


PAIRS = [(14, 14), (14, 32), (14, 50), (32, 32), (32, 50), (50, 50)]


def test_dimers_of_a_known_potential():
    sigma, cutoff = 2.1, 6.0
    lj = LennardJones(sigma=sigma, rc=cutoff)
    found = dimers.curves(of_calculator(lj), PAIRS, cutoff)
    r = found[0].distances
    exact = 24 * (2 * sigma**12 / r**13 - sigma**6 / r**7)
    np.testing.assert_allclose(found[0].forces, exact, rtol=1e-6, atol=1e-9)
    assert r[0] == 0.5 and r[-1] == pytest.approx(cutoff, abs=0.002)
    assert [c.repels_from for c in found] == [0.5] * 6 and not any(c.hole for c in found)
    assert found[0].turns == 1 and found[0].contact == pytest.approx(0.7 * 2 * 1.11)
    # LennardJones cuts its forces off.
    assert found[0].step == pytest.approx(24 * sigma**6 / cutoff**7, rel=0.01)


def test_a_wrong_sign_at_short_distance_is_found():
    lj = LennardJones(sigma=2.1, rc=6.0)
    base, tuned = (dimers.curves(of_calculator(lj, below), PAIRS, 6.0) for below in (0.0, 1.01))
    assert all(c.hole for c in tuned)
    assert all(c.repels_from == pytest.approx(1.05, abs=0.001) for c in tuned)
    rows = {row.quantity: row for row in dimers.dimer_rows(base, tuned)}
    assert rows["repulsive down to"].verdict == rows["pairs with a hole"].verdict == "worse"
    assert rows["pairs with a hole"].tuned == 100 and "Si-Ge" in rows["pairs with a hole"].remark
    assert rows["step at the cutoff"].verdict == "no change"
    assert {row.verdict for row in dimers.dimer_rows(tuned, tuned)} == {"no change"}
    never = dimers.curves(of_calculator(lj, 2.0), PAIRS[:1], 6.0)[0]
    assert never.repels_from == never.contact


def test_pairs_are_those_that_meet():
    structures = [Atoms("SiSiGe").numbers, Atoms("GeSn").numbers, Atoms("H").numbers]
    assert dimers.pairs_in(structures) == [(14, 14), (14, 32), (32, 50)]


# ---- dynamics ----------------------------------------------------------------------------------


class Swirl(Calculator):
    """A spring of k = 2 about the origin and forces around the z axis, which no energy has."""

    implemented_properties = ("energy", "forces")

    def __init__(self, swirl, k=2.0):
        super().__init__()
        self.swirl, self.k = swirl, k

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions
        around = np.stack([-x[:, 1], x[:, 0], 0 * x[:, 0]], axis=1)
        self.results = {"energy": np.nan, "forces": -self.k * x + self.swirl * around}


def test_energy_from_nothing_is_that_of_the_closed_loop():
    """Straight lines through the origin do no work around it, so that U is the spring's alone."""
    nve, atoms = NVE(steps=200, fs=0.5, kelvin=300), Atoms("Si5", positions=np.zeros((5, 3)))
    still = dynamics.run_nve("spring", atoms, Swirl(0.0), nve, seed=3)
    moved = dynamics.run_nve("swirl", atoms, Swirl(0.4), nve, seed=3)
    assert abs(still.drift) < 0.5 and moved.drift > 100 * abs(still.drift)
    assert len(moved.marks) == dynamics.MARKS and moved.times[-1] == pytest.approx(0.1)
    kinetic = moved.kelvin * 5 * 3 * units.kB / 2
    gained = (kinetic[-1] - kinetic[0]) / 5
    assert moved.made[-1] > gained  # and the spring is stretched
    rows = {r.quantity: r for r in dynamics.dynamics_rows([still] * 6, [moved] * 6)}
    assert rows["energy from nothing"].verdict == "worse"
    assert rows["runs that exploded"].verdict == "no change"
    assert {r.verdict for r in dynamics.dynamics_rows([moved] * 6, [moved] * 6)} == {"no change"}


def test_a_gradient_keeps_its_energy():
    """EMT's own energy, without which the integral along the line is done."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.set_constraint(FixAtoms([0]))
    run = dynamics.run_nve("Cu", atoms, EMT(), NVE(steps=60, fs=2.0, kelvin=300), seed=0)
    assert not run.exploded and np.isnan(run.shift)
    assert np.abs(run.made).max() < 1e-4  # eV/atom, while it exchanges 0.03 with the bonds
    free = 3 * (len(atoms) - 1)
    assert run.kelvin[0] * free / (3 * len(atoms)) == pytest.approx(600, rel=0.5)


def test_an_explosion_is_counted_and_the_rest_goes_on():
    nve, atoms = NVE(steps=300, fs=2.0), Atoms("Si5", positions=np.zeros((5, 3)))
    burst = dynamics.run_nve("burst", atoms, Swirl(0.0, k=-30.0), nve, seed=0)
    fine = dynamics.run_nve("fine", atoms, Swirl(0.0), nve, seed=0)
    assert burst.exploded and np.isnan(burst.drift) and len(burst.times) < 301
    rows = {r.quantity: r for r in dynamics.dynamics_rows([fine] * 7, [fine] * 6 + [burst])}
    assert rows["runs that exploded"].tuned == pytest.approx(100 / 7)
    assert "burst" in rows["runs that exploded"].remark
    assert rows["energy from nothing"].sample == 6


# ---- structures --------------------------------------------------------------------------------


def end(atoms, **changes):
    return End(**({"atoms": atoms, "delta_q": 1.0, "converged": True, "sound": True} | changes))


def test_rmsd_and_symmetry():
    target = bulk("Si", cubic=True)
    moved = target.copy()
    moved.positions += [0.3, 3.0, 5.4]  # a rigid shift, across the cell
    moved.wrap()
    assert rmsd(moved, target) == pytest.approx(0, abs=1e-10)
    one = moved.copy()
    one.positions[0, 0] += 0.4
    alone = 0.4 * np.sqrt(1 / 8 - 1 / 64)  # what is left of it without the mean
    assert rmsd(one, target) == pytest.approx(alone / (target.cell.volume / 8) ** (1 / 3))
    held = target.copy()
    held.set_constraint(FixAtoms([1]))
    assert rmsd(one, held) > 0.1
    assert (space_group(moved, 1e-5), space_group(one, 1e-2)) != (1, 1)
    assert space_group(moved, 1e-5) == 227
    pair = Pair("si", target, target)
    relaxed = [Relaxed(pair, end(moved), end(one))] * 6
    rows = {r.quantity: r for r in geometry_rows("geometry", relaxed)}
    assert rows["RMSD"].verdict == rows["same space group at 0.01 Å"].verdict == "worse"
    assert rows["same space group at 1e-05 Å"].base == 100


def test_frames_without_forces_are_named(tmp_path):
    structures = small.silicon(4)
    small.write_frames(tmp_path, structures, spoil=2)
    with connect(tmp_path / "data.aselmdb", type="aselmdb") as database:
        database.write(structures[0], data={"sid": "bare_3"})
    found = folder_frames(str(tmp_path), most=10)
    assert [frame.name for frame in found.items] == ["frame0", "frame1", "frame3"]
    assert "frame2" in found.bad[0] and "not finite" in found.bad[0]
    assert "bare_3" in found.bad[1] and "has no forces" in found.bad[1]
    labels = [frame.forces for frame in found.items]
    shifted = [forces + np.array([0.3, 0.0, 0.4]) for forces in labels]
    rows = {(r.check, r.quantity): r for r in frames.frame_rows(found, labels, shifted)}
    error = rows["forces", "error"]
    assert (error.base, error.tuned) == (0.0, pytest.approx(0.7 / 3))
    assert "bare_3" in error.remark and "too few" in error.remark
    net = [np.linalg.norm(f.sum(0)) / len(f) for f in labels]
    assert rows["net force", "per atom"].base == pytest.approx(np.mean(net))


def test_frames_of_a_relaxation_are_told_by_name():
    names = ["Ti-N-fcc_4", "sub+int_BC-Sn-Ga_0_49", "Ti-H_step12", "frame3", "a_b", "_7"]
    found = [relaxation_of(name) for name in names]
    assert found == ["Ti-N-fcc", "sub+int_BC-Sn-Ga_0", "Ti-H", *names[3:]]


def test_energies_are_compared_beyond_a_shift():
    atoms = bulk("Si")
    energies = np.array([0.0, 1.0, 3.0, 0.0, 2.0])
    names = ["a_0", "a_1", "a_2", "b_0", "b_1"]
    some = [Frame(n, atoms, np.zeros((2, 3)), e) for n, e in zip(names, energies, strict=True)]
    drift, error = frames.energy_rows(some, energies, energies + np.array([4, 4, 4, 6, 6]))
    assert drift.tuned == pytest.approx((2 + 3) / 2) and drift.base == 0
    assert error.verdict == "no change" and error.tuned == pytest.approx(0)
    _, error = frames.energy_rows(some, energies, 2 * energies)
    assert error.tuned == pytest.approx(((4 + 1 + 5) / 9 + 1) / 2 / 2)
    (missing,) = frames.energy_rows(some, None, None)
    assert missing.verdict == "not made" and "forces alone" in missing.remark


def adsorbed():
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    slab.set_tags([0] * 8 + [1] * 4)
    add_adsorbate(slab, Atoms("Cu", tags=[2]), 2.0, "fcc")
    slab.set_constraint(FixAtoms(range(8)))
    return slab


def test_a_reference_that_fails_is_named_and_the_rest_goes_on():
    good, gone = adsorbed(), adsorbed()
    gone.positions[-1, 2] += 4.0
    odd = adsorbed()
    odd.symbols[0] = "Si"  # EMT has none
    pairs = [Pair(f"s{i}", good, good) for i in range(6)] + [Pair("odd", odd, odd)]
    relaxed = [Relaxed(p, end(p.target), end(gone)) for p in pairs[:6]]
    relaxed.append(Relaxed(pairs[6], end(odd), end(odd)))
    asked = judged.ask_all(relaxed, EMT())
    rows = {r.quantity: r for r in judged.reference_rows(relaxed, asked, "")}
    assert "failed at 1 structures: odd: NotImplementedError" in next(iter(rows.values())).remark
    height = []
    for atoms in (good, gone):
        atoms.calc = EMT()
        height.append(atoms.get_potential_energy())
    above = rows["energy above the target"]
    assert (above.base, above.tuned) == (0.0, pytest.approx(height[1] - height[0]))
    assert above.sample == 6 and above.verdict == "worse"
    assert rows["within 0.1 eV of the target, or below it"].tuned == 0
    assert rows["no anomaly, and within 0.1 eV of the target"].base == 100
    (anomaly,) = judged.anomaly_rows(relaxed)
    assert anomaly.tuned == pytest.approx(600 / 7) and "desorbed 0 and 6" in anomaly.remark
    assert judged.reference_rows(relaxed, None, "none here")[0].remark == "none here"
    labelled = strained.label([pairs[0], pairs[6]], 1.1, EMT())
    assert labelled[0].atoms.cell.volume == pytest.approx(1.1**3 * good.cell.volume)
    assert labelled[0].atoms.positions == pytest.approx(1.1 * good.positions)
    assert "odd: NotImplementedError" in labelled[1]
    off = [labelled[0].forces + 0.5]
    row = strained.strained_row(1.1, Sample(labelled[:1], labelled[1:]), [labelled[0].forces], off)
    assert (row.base, row.tuned) == (0, pytest.approx(0.5)) and "odd" in row.remark


# ---- all of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for split, count, seed in (("train", 3, 0), ("val", 3, 1), ("test", 3, 2)):
        small.write_is2rs(folder / split, small.silicon(count, seed))
    second = small.silicon(3, 5)
    second[0].symbols[0] = "C"
    small.write_is2rs(folder / "second", second)
    small.write_frames(folder / "val_frames", small.silicon(6, 4), spoil=1)
    small.checkpoint(folder / "esen.pt")
    small.checkpoint(folder / "tuned.pt", seed=1)
    return folder


def test_a_model_beside_itself_has_changed_in_nothing(inputs, tmp_path, capsys):
    short = IS2RS(relaxer=Relaxer(max_steps=5))
    models = [replace(load_potential(inputs / "esen.pt", "si"), task=short) for _ in range(2)]
    starts, targets = small.silicon(4), small.silicon(4, 1)
    rows = [models[0].row(*each) for each in zip(starts, range(4), targets, strict=True)]
    settings = Audit(
        "si", frames=str(inputs / "val_frames"), second=str(inputs / "second"), nve=NVE(2, 4)
    )
    lj = LennardJones(sigma=2.0, rc=4.0)
    found = audit(Auditor(models, settings, lj, rows, {14, 32}, 64), "test", tmp_path)
    verdicts = {(row.check, row.quantity): row.verdict for row in found}
    not_made = {key for key, verdict in verdicts.items() if verdict == "not made"}
    assert not_made == {("energies", "drift"), ("adsorbates", "anomalies")}
    assert set(verdicts.values()) == {"no change", "not made"} and len(verdicts) > 24
    remarks = {(row.check, row.quantity): row.remark for row in found}
    assert "frame1" in remarks["forces", "error"]
    assert "No training structure has C" in remarks["second domain", "Delta Q"]
    assert f"made 0 of {len(found)} quantities worse" in capsys.readouterr().out


def typed(inputs, run_dir):
    return (
        *("-c", ROOT / "configs/si/gdeq.yml", "--mode", "audit", f"job.run_dir={run_dir}"),
        *(f"data={inputs}", f"base={inputs / 'esen.pt'}", f"checkpoint={inputs / 'tuned.pt'}"),
        *("paths.train=${data}/train", "paths.val=${data}/val", "paths.test=${data}/test"),
        *("max_atoms=16", "eval_max_atoms=64", "forces.src=none"),
        *("relaxer.max_steps=5", "relaxer.horizon=0"),
        *("audit.nve.runs=1", "audit.nve.steps=4", "audit.structures=2"),
        f"audit.second={inputs}/nothing",
    )


@pytest.mark.slow
def test_the_command(inputs, tmp_path):
    """One check that cannot be made, and a frame without forces: the others are made."""
    done = commands.fairchem(*typed(inputs, tmp_path), "job.scheduler.ranks_per_node=1", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "gdeq/results/audit"
    stored = json.loads((folder / "audit.json").read_text())
    rows = {(row["check"], row["quantity"]): row for row in stored["rows"]}
    assert stored["verdict"] in done.stdout and f"results: {folder / 'audit.json'}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert "frame1" in rows["forces", "error"]["remark"]
    assert rows["forces", "error"]["base"] != rows["forces", "error"]["tuned"]
    assert "nothing: no such file" in rows["second domain", "Delta Q"]["remark"]
    assert rows["relaxations", "Delta Q"]["sample"] == 2
    assert len(stored["dimers"]["base"]) == 2 and len(stored["dynamics"]["tuned"]) == 1
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "too few to judge" in page


@pytest.mark.slow
def test_several_ranks_find_what_one_does(inputs, tmp_path):
    found = []
    for count in (1, 2):
        done = commands.ranks(count, *typed(inputs, tmp_path / str(count)))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("report: ") == 1
        path = tmp_path / str(count) / "gdeq/results/audit/audit.json"
        found.append(json.loads(path.read_text()))
        for row in found[-1][
            "rows"
        ]:  # percentiles of five frames' resamples jump with the last digit
            del row["low"], row["high"]
    assert_same(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_without_a_tuned_model_it_says_so():
    untrained = SimpleNamespace(tuned=lambda: None, audited=Audit("si"), train_eval_unit=None)
    with pytest.raises(ValueError, match="compares a tuned model with its base: checkpoint=PATH"):
        GDEQRunner.audit(untrained)


def test_a_model_of_displacements_has_no_forces_to_audit():
    of_displacements = EvaluatedModel("tuned", None, IS2RS().of_displacements)
    with pytest.raises(ValueError, match="the tuned model predicts displacements"):
        potential_of(of_displacements, [], "si", torch.device("cpu"))
