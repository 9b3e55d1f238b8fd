"""The study: its runs compose, what it keeps is compared by pairs, and the page says what is kept."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from benchmarks.study import again, docs, outcomes, pairs, running, showing
from benchmarks.study.__main__ import main as study_main
from benchmarks.study.pictures import draw
from benchmarks.study.tables import Table, read_tables

TABLES = read_tables()
RUNS = {run.kept.stem + run.table: run for table in TABLES.values() for run in table.runs()}
NEAR, FAR = 0.5, 3.0


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Writes outcomes of a small table, by arm and seed: Delta Q of three structures."""
    monkeypatch.setattr("benchmarks.study.tables.OUTCOMES", tmp_path)
    table = Table(
        "small",
        "si/gdeq.yml",
        (0, 1),
        {"forces": (), "gdeq": ()},
        point="N",
        points={"8": (), "16": ()},
    )

    def write(arm, point, seed, ends):
        running.write(table.run(arm, point, seed).kept, outcome(ends, seed))

    return table, write


def outcome(ends, seed):
    rows = {"base": [[i, FAR, 30] for i in range(3)]}
    rows["tuned"] = [[i, far, 20] for i, far in enumerate(ends)]
    return {"test": rows, "val": rows, "training": {"seconds": 60.0 * (1 + seed)}}


def test_every_run_has_a_file_of_its_own():
    assert len(RUNS) == sum(len(list(table.runs())) for table in TABLES.values())


@cache
def composed(config):
    folder, _, name = config.rpartition("/")
    with initialize_config_dir(str(running.CONFIGS / folder), version_base="1.1"):
        return compose(name)


@pytest.mark.parametrize("name", TABLES)
def test_every_override_is_of_a_key_of_its_config(name):
    table = TABLES[name]
    if table.patch or table.fairchem == 1:
        pytest.skip("keys of a patch, or of the other line")
    keys = {
        (run.config, override.key_or_group)
        for run in table.runs()
        for override in OverridesParser.create().parse_overrides(list(run.overrides))
        if not override.is_add() and not (running.CONFIGS / override.key_or_group).is_dir()
    }
    nowhere = object()
    for config, key in keys:
        found = OmegaConf.select(composed(config), key, default=nowhere)
        assert found is not nowhere, (config, key)


def test_the_base_has_the_force_error_of_any_arm_that_was_asked_for_it(kept):
    table, write = kept
    write("forces", "8", 0, [FAR] * 3)
    (base, _) = outcomes.rows_of(table, "test")
    assert base.force_mae is None
    found = outcome([NEAR] * 3, 0) | {"force_mae": {"base": 0.02, "tuned": 0.01}}
    running.write(table.run("gdeq", "16", 0).kept, found)
    base, forces, gdeq = outcomes.rows_of(table, "test")
    assert (base.force_mae, forces.force_mae, gdeq.force_mae) == ((0.02, None), None, (0.01, None))
    write("gdeq", "16", 1, [NEAR] * 3)  # an older one, which was not asked
    *_, gdeq = outcomes.rows_of(table, "test")
    assert gdeq.seeds == 2 and gdeq.force_mae == (0.01, None)


def test_an_arm_with_a_config_of_its_own_has_none_of_the_overrides_of_the_table():
    arms, others = (
        {"gdeq": ("lr=1",)},
        {"other": {"config": "si/relaxnet.yml", "overrides": ["lr=2"]}},
    )
    table = Table("t", "si/gdeq.yml", (0,), arms, ("epochs=3",), others=others)
    found = {run.arm: (run.config, run.overrides) for run in table.runs()}
    assert found["gdeq"] == ("si/gdeq.yml", ("epochs=3", "lr=1"))
    assert found["other"] == ("si/relaxnet.yml", ("lr=2",))


@pytest.mark.slow
@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_is_kept(page):
    text = page.read_text()
    assert docs.renewed(text, TABLES) == text, "run python -m benchmarks.study docs"


def test_an_unknown_table_on_the_page_is_named():
    with pytest.raises(SystemExit, match="a page names the table nothing: there are command1"):
        docs.renewed("<!-- study nothing test -->\n<!-- end -->", TABLES)


def test_arms_are_compared_by_pairs_at_their_point(kept):
    table, write = kept
    for seed in table.seeds:
        write("forces", "8", seed, [FAR, FAR, FAR + 1])
        write("gdeq", "8", seed, [NEAR, FAR, FAR])
    write("forces", "16", 0, [NEAR, NEAR, NEAR])
    base, forces, gdeq, more = outcomes.rows_of(table, "test")
    assert base.mean == (FAR, None) and base.basins == (0.0, None)
    assert forces.against_first is None and gdeq.seeds == 2
    assert gdeq.minutes == pytest.approx((1.5, np.sqrt(0.5)))
    log = (np.log1p(NEAR) - np.log1p(FAR) + np.log1p(FAR) - np.log1p(FAR + 1)) / 3
    assert gdeq.against_first.log.log_change == pytest.approx(log)
    assert (gdeq.against_base.plain.better, gdeq.against_base.plain.worse) == (1, 0)
    assert more.point == "16" and more.basins == (100.0, None)


def test_a_row_has_numbers_and_intervals(kept, tmp_path):
    table, write = kept
    write("forces", "8", 0, [FAR, FAR, FAR])
    write("gdeq", "16", 0, [NEAR, FAR, FAR])
    rows = list(outcomes.rows_of(table, "val"))
    shown = showing.markdown(table, rows, "val").splitlines()
    assert shown[0].startswith("| validation, 3 structures |") and "peak MB" not in shown[0]
    assert shown[4].startswith("| 16, gdeq, 1 seed | 2.167 | 3.000 | 33.3% |")
    showing.write_csv(rows, tmp_path / "rows.csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4
    draw(table, rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_both_lines_of_fairchem_are_started_as_their_users_start_them(tmp_path, monkeypatch):
    own = Table("own", "si/gdeq.yml", (3,), {"gdeq": ("lr=1",)}).run("gdeq", "", 3)
    first = replace(own, config="oc22/gdeq_gemnet_oc_smoke.yml", fairchem=1)
    first = replace(first, overrides=("--task.keep=last",))
    program = tmp_path / "fairchem"
    monkeypatch.setitem(running.PROGRAMS, 1, program)
    with pytest.raises(SystemExit, match="nox -s fairchem1 --install-only"):
        running.command(first, tmp_path)
    program.touch()
    assert running.command(own, tmp_path)[3:] == [
        f"job.run_dir={tmp_path}",
        "job.timestamp_id=gdeq_seed3",
        "job.seed=3",
        "lr=1",
        "--mode",
        "train",
    ]
    command = running.command(first, tmp_path)
    assert command[:3] == [str(program), "--mode=train", "--cpu"]
    assert {"--seed=3", "--task.run_id=gdeq_seed3", "--task.keep=last"} <= set(command)
    assert running.results(own, tmp_path) == tmp_path / "gdeq_seed3" / "results" / "test.json"
    assert running.results(first, tmp_path) == tmp_path / "results" / "gdeq_seed3" / "test.json"


def test_runs_that_need_a_patch_are_not_started(monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", "run", "ablations"])
    with pytest.raises(SystemExit, match="ablations: its runs need terms"):
        study_main()


def test_what_is_kept_is_not_run_again(kept, monkeypatch):
    table, write = kept
    write("forces", "8", 0, [FAR] * 3)
    started = []
    monkeypatch.setattr(running, "run_one", lambda run, folder: started.append(run.name))
    running.run_all(table.runs(), running.CONFIGS, jobs=1)
    assert len(started) == 7 and "forces_8_seed0" not in started
    assert json.loads(table.run("forces", "8", 0).kept.read_text())["test"]["base"][0] == [
        0,
        FAR,
        30,
    ]


def test_a_run_made_again_is_one_of_those_that_are_kept(kept):
    table, write = kept
    with pytest.raises(SystemExit, match="small: none of its runs is kept"):
        again.drawn(table, 0)
    write("gdeq", "8", 0, [NEAR] * 3)
    assert {again.drawn(table, draw).name for draw in range(9)} == {"gdeq_8_seed0"}
    write("forces", "16", 1, [NEAR] * 3)
    assert {again.drawn(table, draw).name for draw in range(9)} == {
        "gdeq_8_seed0",
        "forces_16_seed1",
    }
    assert again.drawn(table, 3) == again.drawn(table, 3)


def test_a_run_made_again_is_compared_with_its_first_outcome(kept, tmp_path, monkeypatch):
    table, write = kept
    monkeypatch.setattr(again, "AGAIN", tmp_path / "again")
    monkeypatch.setattr(again, "trained", lambda run, folder: outcome([NEAR, FAR, NEAR], run.seed))
    write("gdeq", "8", 0, [NEAR, FAR, FAR])
    assert again.markdown({"small": table}).count("\n") == 1  # nothing yet
    run = again.drawn(table, 0)
    before = run.kept.read_text()
    again.make(run, tmp_path)
    assert run.kept.read_text() == before
    (found,) = again.repeats({"small": table})
    assert (found.then, found.now) == pytest.approx(((NEAR + 2 * FAR) / 3, (2 * NEAR + FAR) / 3))
    assert found.others == ()
    log = (np.log1p(NEAR) - np.log1p(FAR)) / 3
    assert found.moved.log.log_change == pytest.approx(log)
    write("gdeq", "8", 1, [FAR] * 3)
    shown = again.markdown({"small": table}).splitlines()[-1]
    assert shown.startswith("| `small` | `gdeq_8_seed0` | 2.167 | 1.333 | 3.000 | ")
    assert shown.endswith("| 1 : 0 |")
    page = docs.renewed("<!-- again -->\nold\n<!-- end -->", {"small": table})
    assert shown in page and "old" not in page


def test_any_two_rows_or_runs_are_compared(kept):
    table, write = kept
    tables = {"small": table}
    write("forces", "8", 0, [FAR, FAR, FAR])
    write("gdeq", "16", 0, [NEAR, FAR, FAR])
    write("gdeq", "16", 1, [NEAR, NEAR, FAR])
    rows = pairs.between("small/forces_8", "small/gdeq_16", tables)["val"]
    log = np.log1p(NEAR) - np.log1p(FAR)
    assert rows.log.log_change == pytest.approx((1 + 0.5) / 3 * log)
    seeds = pairs.between("small/gdeq_16_seed0", "small/gdeq_16_seed1", tables)["test"]
    assert seeds.log.log_change == pytest.approx(log / 3)
    shown = pairs.markdown("small/forces_8", "small/gdeq_16", tables).splitlines()
    assert shown[0].startswith("| `small/gdeq_16` against `small/forces_8` | log")
    assert shown[2].startswith("| test | -0.") and shown[3].endswith("| 2 : 0 |")
    with pytest.raises(
        SystemExit, match="nothing of that name is kept in small; there are forces_8"
    ):
        pairs.named("small/gdeq", tables)
    with pytest.raises(SystemExit, match=r"expected TABLE/ARM, of small"):
        pairs.named("gdeq_16", tables)
